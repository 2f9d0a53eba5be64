from __future__ import annotations

import itertools
import threading

import pytest

from orch_policies.hang import CAP_S, FLOOR_S
from orch_workers.hangs import LOOKS, SAYS_SO_AFTER_S, HangWatch
from orch_workers.process.stacks import Stacks
from orch_workers.training.page import Progress

NS = 10**9


class Scene:
    """A watch with a clock of its own, and stacks that the test decides about."""

    def __init__(self, rule="auto", stacks=lambda: Stacks("MainThread\n  wait (x.py:1)", "wait")):
        self.now_s = 1000.0
        self.notes = []
        self.reads = []
        self.watch = HangWatch(
            rule, self.read, self.notes.append, lambda: int(self.now_s * NS), looks_apart_s=0
        )
        self.stacks = stacks
        self.step, self.stepped_s, self.restored = 0, 0.0, 0
        self.watch.began()

    def read(self, pids):
        self.reads.append(list(pids))
        return self.stacks()

    def makes_step(self, after_s):
        self.now_s += after_s
        self.step, self.stepped_s = self.step + 1, self.now_s
        assert self.look() is None

    def once(self, **options):
        progress = Progress(self.step, int(self.stepped_s * NS), 0, 0, 0)
        usual = {"restored_step": self.restored, "saving": False, "finished": False, "pids": lambda: [7]}
        return self.watch.look(progress, **(usual | options))

    def look(self, after_s=0.0, **options):
        """Once more when the stacks have been read, if they are."""
        self.now_s += after_s
        found = self.once(**options)
        if self.watch._looking is None:
            return found
        assert self.watch._looking.wait(10)
        return self.once(**options)


def test_what_stands_still_is_hung():
    scene = Scene()
    scene.makes_step(30)
    scene.makes_step(1)
    assert scene.look(FLOOR_S - 1) is None
    assert not scene.reads
    hang = scene.look(1)
    assert hang is not None
    assert len(scene.reads) == LOOKS
    assert scene.reads[0] == [7]
    assert hang.failure.kind == "hang"
    assert hang.failure.step == 2
    assert "no progress for 120 s, waiting for the step after 2" in hang.failure.message
    assert "stood still" in hang.failure.message
    assert "x.py:1" in hang.stacks


def test_what_moves_is_waited_for_and_that_is_said():
    numbers = itertools.count()
    scene = Scene(stacks=lambda: Stacks("…", f"line {next(numbers)}"))
    scene.makes_step(1)
    scene.makes_step(1)
    assert scene.look(FLOOR_S) is None
    assert "the process is busy" in scene.notes[-1]
    assert f"{2 * FLOOR_S:.0f} s" in scene.notes[-1]
    scene.makes_step(10)  # the evaluation is over
    assert scene.look(FLOOR_S - 1) is None, "and its pause was learned"
    assert len(scene.reads) == LOOKS


def test_even_what_moves_is_ended_at_the_cap():
    numbers = itertools.count()
    scene = Scene(stacks=lambda: Stacks("…", f"line {next(numbers)}"))
    scene.makes_step(1)
    scene.makes_step(1)
    hangs = [scene.look(60) for _ in range(int(CAP_S / 60) + 1)]
    assert [hang for hang in hangs if hang is not None]
    assert not any(hangs[: int(CAP_S / 60) - 1])


def test_what_cannot_be_seen_is_no_evidence_before_the_cap():
    scene = Scene(stacks=lambda: Stacks("its stack cannot be read", None))
    scene.makes_step(1)
    scene.makes_step(1)
    assert scene.look(FLOOR_S) is None


def test_a_stopped_process_does_not_move():
    scene = Scene(stacks=lambda: Stacks("process 7 is stopped", None, (7,)))
    scene.makes_step(1)
    scene.makes_step(1)
    hang = scene.look(FLOOR_S)
    assert hang is not None
    assert "process 7 is stopped by a signal" in hang.failure.message


def test_a_limit_of_ones_own_needs_no_evidence_but_leaves_the_stacks():
    scene = Scene(rule=5.0)
    scene.makes_step(1)
    assert scene.look(4.9) is None
    hang = scene.look(0.1)
    assert hang is not None
    assert len(scene.reads) == 1
    assert "as restart.hang says" in hang.failure.message


def test_a_step_that_comes_while_the_stacks_are_read_ends_the_matter():
    scene = Scene()
    scene.makes_step(1)
    scene.makes_step(1)
    gate = threading.Event()
    scene.stacks = lambda: Stacks("…", "wait" if gate.wait(10) else None)
    scene.now_s += FLOOR_S
    assert scene.once() is None
    assert scene.watch._looking is not None, "the stacks are being read"
    scene.step, scene.stepped_s = 3, scene.now_s
    assert scene.once() is None
    assert scene.watch._looking is None
    gate.set()
    assert scene.look(1) is None


def test_storage_that_is_slow_is_no_hang():
    scene = Scene(rule=5.0)
    scene.makes_step(1)
    assert scene.look(1000, saving=True) is None
    assert scene.look(4) is None, "counted from when the wait was over"
    assert scene.look(2) is not None


def test_after_a_restore_only_a_new_step_counts():
    scene = Scene(rule=5.0)
    scene.step, scene.stepped_s, scene.restored = 40, scene.now_s, 40  # the page shows the restored step
    assert scene.look(100) is None, "it is still starting"
    scene.makes_step(1)
    assert scene.look(6) is not None


def test_after_it_has_finished_it_may_take_its_time():
    scene = Scene()
    scene.makes_step(1)
    scene.makes_step(1)
    assert scene.look(FLOOR_S * 2, finished=True) is None
    assert scene.look(CAP_S, finished=True) is not None


@pytest.mark.parametrize(("rule", "told"), [("auto", 1), ("off", 0)])
def test_where_no_step_is_known_that_is_said_once(rule, told):
    scene = Scene(rule=rule)
    for _ in range(5):
        scene.now_s += SAYS_SO_AFTER_S
        options = {"restored_step": 0, "saving": False, "finished": False, "pids": lambda: [7]}
        assert scene.watch.look(None, **options) is None
    assert len([note for note in scene.notes if "a hang would not be seen" in note]) == told
