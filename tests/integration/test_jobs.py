"""A job's whole life through the real command line: what it is told, what it leaves, what its end means."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from support.jobs import Following, Gate, log_of, wait_output, wait_state, write_job
from support.leftovers import of_jobs
from support.server import Server, wait_for

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("own_jobs")]

NOT_IN_THE_LIFE = {"Progressed"}
"""May come at any time."""


def test_trivial_command(server: Server, tmp_path: Path) -> None:
    folder = write_job(tmp_path / "work", "echo hello; echo and this >&2", name="trivial")
    done = server.cli("submit", str(folder / "job.yaml"), "--follow")
    announced, *log = done.stdout.splitlines()
    assert log == ["hello", "and this"]
    job = announced.split()[0]
    assert job.startswith("trivial-")
    assert announced == f"{job} submitted, UNPROTECTED"
    assert "starts over" in done.stderr
    assert "Traceback" not in done.stderr
    assert f"{job} SUCCEEDED after" in done.stdout + done.stderr

    [found] = json.loads(server.cli("status", job, "-o", "json").stdout)["jobs"]
    assert (found["state"], found["exit_code"], found["attempt"], found["restarts"]) == ("SUCCEEDED", 0, 1, 0)
    assert found["error"] is None
    assert found["submitted"] <= found["started"] <= found["ended"]
    assert sum(found["ledger"].values()) > 0
    life = [event["type"] for event in server.events(job) if event["type"] not in NOT_IN_THE_LIFE]
    assert life == [
        "Submitted",
        "TurnCame",
        "GangGranted",
        "AgentUp",
        "ProcessStarted",
        "WorkerEnded",
        "Closed",
    ], "and the last is that it was seen to be gone"
    assert not of_jobs(server.home, [job])
    stored = json.loads((server.home / "storage" / job / "job.json").read_text())
    assert stored["spec"]["run"] == "echo hello; echo and this >&2"
    assert log_of(server, job) == "hello\nand this\n"


def test_command_that_fails(server: Server, tmp_path: Path) -> None:
    """Exit code 1; the command's own is in the status."""
    folder = write_job(tmp_path, "echo before; exit 7", restart={"max_failures": 0})
    done = server.cli("submit", str(folder / "job.yaml"), "--follow", "--quiet", check=1)
    job, *log = done.stdout.splitlines()
    assert log[0] == "before"
    found = server.job(job)
    assert (found["state"], found["exit_code"]) == ("FAILED", 7)
    assert "exited with code 7" in found["reason"]
    assert server.cli("wait", job, check=1).stdout.startswith(f"{job} FAILED after")


def test_command_that_cannot_be_started(server: Server, tmp_path: Path) -> None:
    folder = write_job(tmp_path, "no-such-program --at all")
    job = server.submit(folder)
    found = server.wait(job, check=1)
    assert found["state"] == "FAILED"
    assert found["restarts"] == 0
    assert "command not found" in found["reason"]
    assert "no-such-program" in log_of(server, job)


def test_restarts_within_the_budget(server: Server, tmp_path: Path) -> None:
    """Killed by a signal each time: that is worth a restart, as often as the job file says."""
    folder = write_job(
        tmp_path,
        "echo start $ORCH_GENERATION; kill -9 $$",
        restart={"max_failures": 2, "backoff": {"initial": 0, "max": 0}},
    )
    job = server.submit(folder)
    found = server.wait(job, check=1)
    generations = ["000001.000001", "000001.000002", "000001.000003"]
    assert log_of(server, job).split() == [word for one in generations for word in ("start", one)]
    starts = found["attempts"][0]["restarts"]
    assert [start["signal"] for start in starts] == [9, 9, 9]
    assert [start["charged_to"] for start in starts[1:]] == ["failures", "failures"]
    assert found["charges"]["failures"] == 2
    assert "SIGKILL" in server.cli("status", job).stdout


def test_exit_codes_of_waiting(server: Server, tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    job = server.submit(write_job(tmp_path / "work", f"echo there; {gate.wait}"))
    wait_output(server, job, "there")
    timed_out = server.cli("wait", job, "--timeout", "100ms", check=6)
    assert "it goes on" in timed_out.stderr
    assert server.job(job)["state"] == "RUNNING"
    gate.open()
    assert server.cli("wait", job, check=0).stdout.startswith(f"{job} SUCCEEDED after")
    for verb in ("status", "wait", "events", "logs", "cancel", "fetch"):
        unknown = "../etc/passwd" if verb == "logs" else "no-such-job-aaaaa"
        missing = server.cli(verb, unknown, check=4)
        assert missing.stdout == ""
        assert unknown in missing.stderr
    for wrong in (["status", "--no-such"], ["no-such-verb"], ["wait", job, "--timeout", "soon"], ["submit"]):
        assert "Traceback" not in server.cli(*wrong, check=2).stderr


def test_following_can_be_left(server: Server, tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    folder = write_job(tmp_path / "work", f"echo ready; {gate.wait}; echo went on")
    follower = Following(server, "submit", str(folder / "job.yaml"), "--follow", "--quiet")
    job = follower.line()
    assert follower.line() == "ready"
    code, said = follower.interrupt()
    assert code == 130
    assert f"{job} keeps running" in said
    assert f"orch cancel {job}" in said
    assert "Traceback" not in said
    for verb in (["logs", "-f", job], ["wait", job], ["status", job, "--watch"], ["events", "-f", job]):
        leaver = Following(server, *verb)
        if verb[0] != "wait":
            assert leaver.line()
        else:
            wait_for("it waits", lambda p=leaver: _connected(p))
        code, said = leaver.interrupt()
        assert code == 130, verb
        assert "Traceback" not in said
    assert server.job(job)["state"] == "RUNNING"
    gate.open()
    server.wait(job, check=0)
    assert log_of(server, job) == "ready\nwent on\n"


def _connected(follower: Following) -> bool:
    import psutil

    return bool(psutil.Process(follower.process.pid).net_connections(kind="tcp"))


def test_status_for_people_and_programs(server: Server, tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    job = server.submit(write_job(tmp_path / "work", f"echo up; {gate.wait}", name="looked-at", priority=3))
    wait_output(server, job, "up")
    listing = server.cli("status").stdout
    header, *rows = listing.splitlines()
    assert header.split()[:2] == ["JOB", "STATE"]
    row = next(row for row in rows if job in row)
    assert "RUNNING" in row
    assert "UNPROTECTED" in row
    assert "\x1b" not in listing, "no colours where nobody sees them"
    one = server.cli("status", job).stdout
    assert "UNPROTECTED" in one
    assert "looked-at" in one
    document = json.loads(server.cli("status", "-o", "json").stdout)
    assert document["version"] == 1
    found = next(one for one in document["jobs"] if one["id"] == job)
    assert (found["priority"], found["flags"], found["name"]) == (3, ["UNPROTECTED"], "looked-at")
    watcher = Following(server, "status", job, "--watch", "-o", "json")
    assert json.loads(watcher.line())["jobs"][0]["state"] == "RUNNING"
    gate.open()
    last = watcher.lines_until("SUCCEEDED")[-1]
    assert json.loads(last)["version"] == 1
    assert watcher.end()[0] == 0, "for one job, watching ends with it"
    assert wait_state(server, job, "SUCCEEDED")["step"] is None


def test_events_can_be_followed(server: Server, tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    job = server.submit(write_job(tmp_path / "work", gate.wait))
    follower = Following(server, "events", job, "-f", "-o", "json")
    seen = [json.loads(line) for line in follower.lines_until("ProcessStarted")]
    assert seen[0]["type"] == "Submitted"
    gate.open()
    seen += [json.loads(line) for line in follower.lines_until("Closed")]
    assert follower.end()[0] == 0
    assert seen == server.events(job)
    assert [event["seq"] for event in seen] == sorted(event["seq"] for event in seen)
    told = server.cli("events", job).stdout.splitlines()
    assert len(told) == len(seen)
