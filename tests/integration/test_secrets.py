"""A secret is known to its command alone: it is in nothing that is shown, stored in the open, or handed to Ray."""

from __future__ import annotations

import json
import stat
import urllib.request
from pathlib import Path

import psutil
import pytest

from orch.control.home import Home
from orch.control.raylocal import ray_processes
from support.jobs import Gate, wait_output, write_job
from support.server import Server, wait_for

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("own_jobs")]

SECRET = "Zq7-very-secret-value-Xw9"
UNNAMED = "Jv4-nobody-has-named-this-Pk2"
"""In the environment of whoever submits, as so much is: it goes nowhere at all."""
RUN = "echo the key is $TEST_KEY; test ${#TEST_KEY} = 25 && echo it is whole; %s; echo $TEST_KEY >&2; false"
RAY_STATE = """
import sys, json, ray
ray.init(address=sys.argv[1], namespace="orch", _node_ip_address="127.0.0.1", log_to_driver=False,
         configure_logging=False)
from ray._raylet import GcsClient
from ray.util.placement_group import placement_group_table
client = GcsClient(address=sys.argv[1])
found = [repr(placement_group_table()), repr(ray._private.state.actors())]
for namespace in (None, b"fun", b"cls", b"session", b"job", b"package", b"serve", b"_internal"):
    for key in client.internal_kv_keys(b"", namespace):
        found.append(repr(key) + repr(client.internal_kv_get(key, namespace)))
text = "".join(found)
print(json.dumps({"size": len(text), "there": %r in text}))
"""


def _raw(server: Server, path: str) -> bytes:
    home = Home(server.home)
    record = home.read_server()
    assert record is not None
    headers = {"Authorization": f"Bearer {home.read_token()}"}
    request = urllib.request.Request(f"{record.url}/api/v1/{path}", headers=headers)
    with urllib.request.urlopen(request) as answer:
        body: bytes = answer.read()
    return body


@pytest.fixture
def submitter(server: Server) -> Server:
    return Server(server.home, {"TEST_KEY": SECRET, "UNNAMED_KEY": UNNAMED})


def test_while_it_runs_and_after(server: Server, submitter: Server, tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    folder = write_job(
        tmp_path / "work",
        RUN % gate.wait,
        secrets=["TEST_KEY"],
        outputs=["*.txt"],
        restart={"max_failures": 0},
    )
    shown = submitter.cli("submit", str(folder / "job.yaml"), "--dry-run").stdout
    done = submitter.cli("submit", str(folder / "job.yaml"), "-o", "json")
    job = json.loads(done.stdout)["jobs"][0]["id"]
    wait_output(server, job, "it is whole")
    assert SECRET not in shown + done.stdout + done.stderr

    ours = {process.pid: process for process in ray_processes(server.home)}
    below = [child for process in ours.values() for child in process.children(recursive=True)]
    command = server.pid(job, "ProcessStarted")
    assert command not in ours
    for process in [*ours.values(), *below]:
        assert SECRET not in " ".join(_asked(process.cmdline, []))
        if process.pid in ours:
            assert SECRET not in str(_asked(process.environ, {})), process
    assert psutil.Process(command).environ()["TEST_KEY"] == SECRET
    state = server.python(RAY_STATE % SECRET)
    assert state["size"] > 10_000
    assert not state["there"]

    _assert_nobody_shows_it()
    gate.open()
    server.wait(job, check=1)
    _assert_nowhere(server, job)


def _assert_nobody_shows_it() -> None:
    """On the whole machine: no process in its arguments, and no shared memory (Ray's objects, snapshots, pages)."""
    for process in psutil.process_iter():
        assert SECRET not in " ".join(_asked(process.cmdline, [])), process
    for path in Path("/dev/shm").rglob("*"):
        if path.is_file():
            assert SECRET.encode() not in _content(path), path


def _asked(ask, otherwise):
    try:
        return ask()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return otherwise


def _assert_nowhere(server: Server, job: str) -> None:
    views = [
        ["status", job], ["status", job, "-o", "json"], ["status"], ["status", "-o", "json"], ["events", job],
        ["events", job, "-o", "json"], ["logs", job], ["logs", job, "-f"], ["logs", job, "-o", "json"],
        ["logs", job, "--timestamps", "--tail", "3"], ["server", "status", "-o", "json"],
    ]  # fmt: skip
    for view in views:
        done = server.cli(*view)
        assert SECRET not in done.stdout + done.stderr, view
    assert "the key is *************************\n" in server.cli("logs", job).stdout
    for path in ("jobs", f"jobs/{job}", f"jobs/{job}/events", f"jobs/{job}/logs", "server"):
        assert SECRET.encode() not in _raw(server, path), path
    for offset in range(8, 40):  # a piece that begins or ends in the middle of it
        assert SECRET.encode()[4:] not in _raw(server, f"jobs/{job}/logs?offset={offset}")

    def copied() -> bool:
        return any((server.home / "storage" / job / "logs").rglob("*"))

    wait_for("the log is in storage", copied, 10.0)
    raw_log = server.home / "jobs" / job
    for path in server.home.rglob("*"):
        # The log of this machine is what the command wrote, readable by the owner alone.
        if path.is_file() and not path.is_relative_to(raw_log):
            assert SECRET.encode() not in _content(path), path
        if path.is_file():
            assert UNNAMED.encode() not in _content(path), path


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # gone meanwhile
        return b""


def test_kept_from_other_users(server: Server) -> None:
    assert stat.S_IMODE(server.home.stat().st_mode) == 0o700
    for name in ("token", "ray-token", "secret.key"):
        assert stat.S_IMODE((server.home / name).stat().st_mode) == 0o600, name


def test_in_what_went_wrong(server: Server, submitter: Server, tmp_path: Path) -> None:
    """A traceback with the secret in it: in the error of the status it is blotted out as well."""
    script = "import os\nraise ValueError('bad key ' + os.environ['TEST_KEY'])\n"
    folder = write_job(
        tmp_path / "work", "python bad.py", {"bad.py": script},
        secrets=["TEST_KEY"], restart={"max_failures": 0},
    )  # fmt: skip
    job = submitter.submit(folder)
    found = server.wait(job, check=1)
    assert "ValueError: bad key ****" in found["error"]
    _assert_nowhere_shown(server, job)


def _assert_nowhere_shown(server: Server, job: str) -> None:
    for view in (
        ["status", job],
        ["status", job, "-o", "json"],
        ["events", job, "-o", "json"],
        ["logs", job],
    ):
        assert SECRET not in server.cli(*view).stdout, view


def test_after_a_restart_of_the_process(server: Server, submitter: Server, tmp_path: Path) -> None:
    run = "test ${#TEST_KEY} = 25 && echo whole; test $ORCH_GENERATION = 000001.000002 || kill -9 $$"
    folder = write_job(
        tmp_path / "work", run, secrets=["TEST_KEY"], restart={"backoff": {"initial": 0, "max": 0}}
    )
    job = submitter.submit(folder)
    server.wait(job)
    assert server.cli("logs", job).stdout == "whole\nwhole\n"
