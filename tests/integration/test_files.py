"""A job whose script writes its own checkpoints, as its user has it: killed, looked at, taken elsewhere."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from support.files import HELPER
from support.jobs import Gate, log_of, wait_output, write_job
from support.server import Server, wait_for

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("own_jobs")]

SCRIPT = """
from helper import *
import sys

at = load()
while at < 4:
    at += 1
    save(at)
    print(f"step {at} loss: {1 / at}", flush=True)
    if at in (2, 4) and once(f"stop-{at}"):
        print("waiting", flush=True)
        open(sys.argv[1]).readline()
"""


def test_a_script_that_nobody_changes(server: Server, tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    files = {"train.py": SCRIPT, "helper.py": HELPER}
    checkpoint = {"files": ["state.pkl"], "every": {"seconds": 1}}
    job = server.submit(
        write_job(
            tmp_path / "work",
            f"python train.py {gate.path}",
            files,
            checkpoint=checkpoint,
            metrics={"loss": "loss: ([0-9.]+)"},
            outputs=["state.pkl"],
        )
    )
    wait_output(server, job, "waiting")
    wait_for("its version is kept", lambda: server.client().job(job)["step"])
    found = wait_for("its metric is seen", lambda: server.client().job(job)["metrics"])
    assert found["loss"] == 0.5
    assert server.client().job(job)["flags"] == []
    server.kill_training(job)
    wait_output(server, job, "goes on from 2")
    gate.open()
    server.wait(job)

    shown = server.cli("status", job).stdout
    assert "version" in shown
    assert "UNPROTECTED" not in shown
    assert "restored" in shown
    listed = json.loads(server.cli("checkpoints", "list", job, "-o", "json").stdout)["checkpoints"]
    assert listed[0]["metrics"]["loss"] == 0.25
    assert listed[0]["newest"]
    assert "state.pkl" in server.cli("checkpoints", "show", job).stdout
    assert "every digest matches" in server.cli("checkpoints", "verify", job, "--deep", "--all").stdout
    newest = f"{job}@{listed[0]['step']}"
    server.cli("checkpoints", "export", newest, "--to", "files", "--into", str(tmp_path / "out"))
    assert (tmp_path / "out/state.pkl").stat().st_size > 20000
    assert log_of(server, job).count("starts from nothing") == 1


def test_an_agent_that_is_killed_takes_nothing_along(server: Server, tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    files = {"train.py": SCRIPT, "helper.py": HELPER}
    run = f"python train.py {gate.path}"
    job = server.submit(write_job(tmp_path / "work", run, files, checkpoint={"files": ["state.pkl"]}))
    wait_output(server, job, "waiting")
    wait_for("its version is kept", lambda: server.client().job(job)["step"])
    server.kill_agent(job)
    wait_output(server, job, "goes on from 2")
    gate.open()
    server.wait(job)


def test_what_matches_nothing_is_said(server: Server, tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    elsewhere = tmp_path / "chosen-by-the-script"
    elsewhere.mkdir()
    script = (
        f"open({str(elsewhere / 'model.ckpt-1')!r}, 'w').write('x' * 5000)\n"
        f"events = open({str(elsewhere / 'events')!r}, 'w')\n"
        f"print('up', flush=True)\n"
        f"open({str(gate.path)!r}).readline()\n"
    )
    checkpoint = {"files": ["models/**"], "every": {"seconds": 1}}
    job = server.submit(
        write_job(tmp_path / "work", "python train.py", {"train.py": script}, checkpoint=checkpoint)
    )
    wait_output(server, job, "up")

    def said() -> bool:
        return any("model.ckpt-1 (" in note["text"] for note in server.client().job(job)["notes"])

    wait_for("it is said", said)
    assert "nothing matches models/**" in server.cli("status", job).stdout
    gate.open()
    server.wait(job)


def test_a_version_that_the_script_cannot_use_is_left_behind_and_said(server: Server, tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    script = """
from helper import *
import sys

at = load()
assert at != "bare", "cannot use it"
save(at + 1)
if once("over"):
    print("saved", flush=True)
    open(sys.argv[1]).readline()
    save("bare")
    os.kill(os.getpid(), 9)
"""
    run = f"python train.py {gate.path}"
    files = {"train.py": script, "helper.py": HELPER}
    job = server.submit(write_job(tmp_path / "work", run, files, checkpoint={"files": ["state.pkl"]}))
    wait_output(server, job, "saved")
    wait_for("its version is in storage", lambda: server.client().job(job)["last_checkpoint"])
    gate.open()
    server.wait(job)
    found = server.client().job(job)
    assert [one["step"] for one in found["checkpoints"] if one["state"] == "quarantined"] == [2]
    assert any("falls back to the one before" in note["text"] for note in found["notes"])
    listed = json.loads(server.cli("checkpoints", "list", job, "-o", "json").stdout)["checkpoints"]
    marked = [one["quarantined"] for one in listed if one["quarantined"]]
    assert len(marked) == 1
    assert "seems unable to use it" in marked[0]
