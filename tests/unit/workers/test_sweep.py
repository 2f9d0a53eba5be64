from __future__ import annotations

import socket
import subprocess
from pathlib import Path

import pytest

from orch_workers import config
from orch_workers.config import WorkerPaths
from orch_workers.process.leftovers import MARK_ENV, mark_of
from orch_workers.session import SOCKET_PATH_BYTES_MAX
from orch_workers.sweep import remains, sweep_job
from orch_workers.training.slots import Slot
from support.workers import LIMIT_S


@pytest.fixture
def paths(machine):
    made = machine.config().paths
    made.make()
    Slot.create(str(made.snapshots / "slot-0"), 4096)
    made.workdir.mkdir()
    (made.workdir / "model.bin").write_text("the only copy")
    made.log.write_text("what a person reads")
    return made


def test_nothing_is_left_but_the_log(paths):
    assert len(remains(paths)) == 3
    sweep_job(paths)
    assert remains(paths) == []
    assert not paths.snapshots_job.parent.exists()
    assert not paths.socket.parent.parent.exists()
    assert paths.log.read_text() == "what a person reads"
    sweep_job(paths)


def test_the_working_area_stays_while_it_holds_what_could_not_be_brought_home(paths):
    paths.undelivered.write_text("{}")
    sweep_job(paths)
    assert (paths.workdir / "model.bin").read_text() == "the only copy"
    assert not paths.snapshots.exists()
    assert not paths.socket.parent.exists()
    assert remains(paths) == []


def test_another_job_on_this_machine_keeps_its_things(machine, paths):
    other = machine.config(job_id="other-1a2b").paths
    other.make()
    sweep_job(paths)
    assert len(remains(other)) == 3


def test_a_process_that_survived_its_guard_is_ended_first(paths):
    process = subprocess.Popen(["/bin/sleep", "1000"], env={MARK_ENV: mark_of(paths.state)})
    sweep_job(paths)
    assert process.wait(LIMIT_S) == -9
    assert remains(paths) == []


def test_long_job_ids_with_the_same_beginning_have_sockets_of_their_own():
    ids = [f"{'a' * 45}-{end}" for end in ("one", "two")]
    sockets = [WorkerPaths(job, 0, Path("/n"), Path("/l")).socket for job in ids]
    assert sockets[0] != sockets[1]
    longest = WorkerPaths("a" * 63, 12345, Path("/n"), Path("/l")).socket
    assert len(str(longest)) <= SOCKET_PATH_BYTES_MAX
    assert longest.is_relative_to(config.SOCKETS)


def test_both_sockets_can_be_bound_and_reach_their_own(machine):
    ids = [f"{'a' * 45}-{end}" for end in ("one", "two")]
    listeners = []
    for job in ids:
        path = machine.config(job_id=job).paths
        path.make()
        listeners.append(socket.socket(socket.AF_UNIX))
        listeners[-1].bind(str(path.socket))
    for listener in listeners:
        listener.close()


def test_the_folders_of_another_user_are_refused(machine, monkeypatch):
    monkeypatch.setattr(config.os, "getuid", lambda: 12345)
    with pytest.raises(PermissionError, match="belongs to another user"):
        machine.config().paths.make()
