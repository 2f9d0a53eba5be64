"""A hang of a script that tells no step: its log and its files are the signs of its progress."""

from __future__ import annotations

from orch_policies.hang import FLOOR_S
from orch_workers.hangs import SAYS_SO_AFTER_S, HangWatch
from orch_workers.process.stacks import Stacks
from orch_workers.training.page import Progress

NS = 10**9


class Told:
    """A launcher, as far as the watch asks it."""

    waits_for_slot = False

    def __init__(self) -> None:
        self.version, self.beats = 3, 3

    def progress(self) -> Progress:
        return Progress(self.version, 0, 0, 0, 0)

    def beat(self) -> Progress | None:
        return None if self.beats is None else Progress(self.beats, 0, 0, 0, 0)

    def pids(self) -> list[int]:
        return [7]


class Scene:
    def __init__(self) -> None:
        self.now_s, self.notes, self.told = 1000.0, [], Told()
        self.watch = HangWatch(
            "auto",
            lambda pids: Stacks("MainThread\n  wait (x.py:1)", "wait"),
            self.notes.append,
            lambda: int(self.now_s * NS),
            looks_apart_s=0,
        )
        self.watch.began()

    def look(self, after_s: float):
        self.now_s += after_s
        found = self.watch.look_at(self.told, 3, finished=False)
        if self.watch._looking is None:
            return found
        assert self.watch._looking.wait(10)
        return self.watch.look_at(self.told, 3, finished=False)


def test_lines_of_the_log_are_progress_and_the_version_is_what_is_told():
    scene = Scene()
    for _ in range(20):
        scene.told.beats += 1
        assert scene.look(5.0) is None
    scene.told.version = 4
    hang = scene.look(FLOOR_S + 1)
    assert hang is not None
    assert hang.failure.step == 4
    assert "waiting for a sign of progress after version 4" in hang.failure.message


def test_without_a_sign_of_progress_it_is_said_not_to_be_watched():
    scene = Scene()
    scene.told.beats = None
    assert scene.look(SAYS_SO_AFTER_S + 1) is None
    assert scene.look(100000.0) is None
    assert "a hang would not be seen" in scene.notes[0]
