"""The handlers of the socket that need care, and the thread that sees exits."""

from __future__ import annotations

import contextlib
import errno

import pytest

from orch.model.generation import Generation
from orch_workers.checkpoint.staging import Staging
from orch_workers.process import guarded as processes
from orch_workers.process.launch import Launcher
from orch_workers.session import BusyError
from support.processes import Command, Fifo
from support.server import wait_for
from support.workers import LIMIT_S, Stuck, good


class Notes:
    """A listener that only writes down what people should see."""

    def __init__(self):
        self.notes = []

    def note(self, message):
        self.notes.append(message)


@pytest.fixture
def listener():
    return Notes()


@pytest.fixture
def kept(machine):
    made = machine.keeper().open()
    made.begin()
    return made


@pytest.fixture
def launcher(kept, listener):
    return Launcher(kept.config, {}, listener, kept.keeper)


def fill_both(machine, kept):
    """One is being written to a storage that does not answer, the other waits for its turn."""
    machine.storage.mood = stuck = Stuck("shards")
    kept.save(5)
    assert stuck.reached.wait(LIMIT_S)
    kept.save(6)
    return stuck


def save(launcher, reason, *, wait=True):
    return launcher.on_save(1024, step=7, reason=reason, wait=wait)


def saved_or_busy(launcher, reason):
    with contextlib.suppress(BusyError):
        return save(launcher, reason)


def test_what_the_clock_asked_for_is_skipped_while_both_slots_are_held(machine, kept, launcher):
    stuck = fill_both(machine, kept)
    assert save(launcher, "asked") is None
    assert save(launcher, "last", wait=False) is None
    stuck.go.set()


@pytest.mark.parametrize("reason", ["last", "stop", "demand"])
def test_what_must_not_be_skipped_waits_for_a_slot(machine, kept, launcher, reason):
    stuck = fill_both(machine, kept)
    with pytest.raises(BusyError):
        save(launcher, reason)
    assert launcher.waits_for_slot
    stuck.go.set()
    machine.storage.mood = good
    given = wait_for("a slot is free", lambda: saved_or_busy(launcher, reason), LIMIT_S)
    assert given[0] in {0, 1}
    assert not launcher.waits_for_slot


def test_saves_by_steps_that_would_cost_too_much_are_left_out(machine, listener):
    kept = machine.keeper(every_steps=1, every_seconds=None, max_overhead=0.001).open()
    kept.begin()
    launcher = Launcher(kept.config, {}, listener, kept.keeper)
    assert launcher.on_hello({})["rules"]["steps"] == 1
    assert save(launcher, "steps") is not None, "nothing is measured yet"
    kept.keeper.save_failed()
    kept.keeper.pacing.saved(1.0)
    for reason in ("steps", "epochs"):
        assert save(launcher, reason, wait=False) is None
    for reason in ("first", "last", "stop", "demand", "asked"):
        assert save(launcher, reason) is not None
        kept.keeper.save_failed()


@pytest.mark.parametrize("reason", ["asked", "last"])
def test_no_room_for_a_snapshot_is_busy_and_said(machine, kept, launcher, listener, monkeypatch, reason):
    def acquire(self, size_bytes):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Staging, "acquire", acquire)
        assert save(launcher, reason) is None
    assert "no snapshot of step 7 can be taken" in listener.notes[-1]
    assert "No space left on device" in listener.notes[-1]
    assert save(launcher, reason) is not None


def test_a_hello_is_answered_with_what_is_to_be_restored(machine, kept, launcher):
    kept.keep(5)
    kept.keeper.process_gone()
    kept.keeper.start_generation(Generation(1, 2))
    welcome = launcher.on_hello({})
    assert (welcome["restore"]["step"], welcome["restore"]["source"]) == (5, "memory")
    assert launcher.said_hello


def test_a_full_disk_does_not_end_the_thread_that_sees_exits(tmp_path, monkeypatch):
    fifo = Fifo(tmp_path)
    monkeypatch.setattr(processes, "RECORD_EVERY_S", 0.02)
    tries = []

    def record_tree(state_dir, found):
        tries.append(found)
        raise OSError(errno.ENOSPC, "No space left on device")

    command = Command(tmp_path, ["/bin/sh", "-c", 'read go <"$FIFO.go"; sleep 1000 & wait'])
    monkeypatch.setattr(processes, "record_tree", record_tree)
    fifo.go()
    wait_for("the grown tree could not be recorded, twice", lambda: len(tries) > 1, LIMIT_S)
    command.process.kill()
    assert command.finish().signal == 9


def test_a_full_disk_does_not_keep_a_process_from_starting(tmp_path, monkeypatch):
    def record_tree(state_dir, found):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(processes, "record_tree", record_tree)
    assert Command(tmp_path, ["true"]).finish().code == 0
