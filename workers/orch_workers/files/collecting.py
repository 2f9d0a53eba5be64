"""Makes versions of a job's files on this machine: takes what is there, examines it, and keeps it if it is whole."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from orch_workers.checkpoint.chain import Generation
from orch_workers.checkpoint.file_records import FileRecord
from orch_workers.checkpoint.staging import Snapshot
from orch_workers.files.judging import changed, why_not
from orch_workers.files.local import Local, Version
from orch_workers.files.looking import Look, Looker
from orch_workers.files.matching import OWN_PREFIX, Signature
from orch_workers.files.placing import place, set_aside, tidy_aside
from orch_workers.files.taking import ChangedError, take

ASIDE = f"{OWN_PREFIX}aside"


class Ending(NamedTuple):
    """How the script ended: `well` is exit code 0; `was_settled`: it was seen to be done with its files before."""

    well: bool
    was_settled: bool


class Outcome(NamedTuple):
    """Of one try: a version, or why there is none. Neither: the script went on writing meanwhile."""

    snapshot: Snapshot | None = None
    problem: str = ""
    is_broken: bool = False
    """Not only is it not known to be whole: it is known not to be."""


class Collector:
    """The versions of one working folder. One try at a time; `lock` guards what is kept."""

    def __init__(
        self, root: Path, patterns: Sequence[str], local: Local, lock: threading.Condition, aside: Path | None
    ) -> None:
        """`aside`: where what a start has left is put, and goes with time; None: into the folder itself, whose owner
        decides about it.
        """
        self._root, self._local, self._lock = root, local, lock
        self._aside = root / ASIDE if aside is None else aside
        self._is_ours = aside is not None
        self._pids: Callable[[], Sequence[int]] = list
        self.looker = Looker(root, patterns, self._writers)
        self.before: dict[str, Signature] = {}
        """The script's files as they were in the newest version."""
        self._known: dict[str, tuple[Signature, FileRecord, Path]] = {}
        self._single_bursts = 0
        self.version: Version | None = None
        """The newest, taken or put in its place."""

    def follow(self, pids: Callable[[], Sequence[int]]) -> None:
        """Whose open files count from now on."""
        self._pids = pids

    def _writers(self) -> Sequence[int]:
        return self._pids()

    # before a start

    def put(self, snapshot: Snapshot, mark: str) -> list[str]:
        """Puts a version in its place; what a start has left beside is set aside, below a folder called `mark`.
        Returns the names of that. OSError.
        """
        with self._lock:
            version = self._local.version(snapshot)
        self.looker.leave_out(version.left_out)
        moved = place(version, snapshot, self._root, self.looker.look().files, self._aside / mark)
        if self._is_ours:
            tidy_aside(self._aside)
        self.has(version, snapshot)
        return moved

    def has(self, version: Version, snapshot: Snapshot) -> None:
        """The working folder holds this version now."""
        self.before = dict(self.looker.look().files)
        self._remember(version, snapshot, self.before)

    def was(self, version: Version, snapshot: Snapshot) -> None:
        """The working folder held this version when its files were last looked at, by an earlier agent."""
        self.looker.leave_out(version.left_out)
        self.before = dict(version.here)
        self._remember(version, snapshot, self.before)

    def clear(self, look: Look, mark: str) -> list[str]:
        """Sets aside what a start has written beside `before`, where there is no version to put in its place."""
        names = changed(self.before, look.files)
        for name in names:
            set_aside(self._root, name, self._aside / mark)
        return names

    # while it runs, and after

    def take(
        self,
        look: Look,
        generation: Generation,
        number: int,
        metrics: dict[str, Any],
        ending: Ending | None = None,
    ) -> Outcome:
        """Tries to make version `number` of what `look` has seen. `ending`: the script has ended, and nobody knows
        whether it was done. OSError.
        """
        began = time.monotonic()
        with self._lock:
            index, folder = self._local.make()
        try:
            outcome = self._take(look, generation, number, metrics, ending, (index, folder, began))
        except ChangedError:
            outcome = Outcome()
        except BaseException:
            with self._lock:
                self._local.drop(index)
            raise
        if outcome.snapshot is None:
            with self._lock:
                self._local.drop(index)
        return outcome

    def _take(
        self,
        look: Look,
        generation: Generation,
        number: int,
        metrics: dict[str, Any],
        ending: Ending | None,
        into: tuple[int, Path, float],
    ) -> Outcome:
        """`into`: number and path of an empty folder, and since when."""
        index, folder, began = into

        def is_still() -> bool:
            again = self.looker.look()
            return again.files == look.files and not again.writing

        taken = take(str(self._root), look.files, folder, known=self._known, is_still=is_still)
        found = taken.examined
        if found.problem:
            return Outcome(problem=found.problem, is_broken=True)
        if ending is not None:
            problem = why_not(
                found.files,
                self.before,
                look.files,
                well=ending.well,
                was_settled=ending.was_settled,
                single_bursts=self._single_bursts,
            )
            if problem:
                return Outcome(problem=problem)
        version = Version(
            generation,
            number,
            taken.files,
            step=found.step,
            epoch=found.epoch,
            metrics=dict(metrics),
            left_out=tuple(sorted(look.left_out)),
            took_s=round(time.monotonic() - began, 6),
            here=tuple(sorted(look.files.items())),
        )
        with self._lock:
            snapshot = self._local.ready(index, version)
        burst = len(changed(self.before, look.files))
        self._single_bursts = self._single_bursts + 1 if burst == 1 and self.before else 0
        self.before = dict(look.files)
        self._remember(version, snapshot, self.before)
        return Outcome(snapshot)

    def _remember(self, version: Version, snapshot: Snapshot, files: dict[str, Signature]) -> None:
        self.version = version
        self._known = {
            file.path: (files[file.path], file, Local.file_of(snapshot, number))
            for number, file in enumerate(version.files)
            if file.path in files and not file.link
        }
