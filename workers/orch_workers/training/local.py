"""Without orch: the same script, run by hand, checkpoints into a folder beside it and resumes from there.

The very engine of the agents (orch_workers.checkpoint) writes and reads, here in the training process itself:
a save takes as long as the disk does. It is looked up by name when it is needed, since inside a job's bundle
there is none, and since the training side imports the standard library only.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import os
import re
import sys
import time
from typing import Any, Callable

from .errors import TrainingError
from .page import Word
from .sink import Grant, RestorePoint, Sink
from .slots import Slot, format_generation

FOLDER_NAME = ".orch"
CHECKPOINTS_KEPT = 5
NAME_CHARACTERS_MAX = 63


class UnkeptSink(Sink):
    """Nothing is kept."""

    _WORD = Word(0, 0, False, 0)

    def progress(self, step: int, epoch: int) -> Word:
        return self._WORD

    def word(self) -> Word:
        return self._WORD

    def grant(self, size_bytes: int, step: int, reason: str, *, wait: bool) -> Grant | None:
        return None

    def saved(self, grant: Grant, snapshot: dict[str, Any]) -> None:
        pass

    def save_failed(self, grant: Grant, message: str) -> None:
        pass

    def restored(self, step: int, source: str, seconds_s: float) -> None:
        pass

    def mismatch(self, message: str) -> None:
        pass

    def metrics(self, step: int, epoch: int, values: dict[str, Any]) -> None:
        pass

    def note(self, level: str, message: str) -> None:
        pass

    def finished(self, step: int, epoch: int) -> None:
        pass

    def close(self) -> None:
        pass


class FolderSink(UnkeptSink):
    """Checkpoints in `folder`, for the run called `name`. One process at a time, held by a file lock."""

    def __init__(
        self,
        engine: Any,
        folder: str,
        name: str,
        every_s: float,
        *,
        restore: bool,
        say: Callable[[str], None],
    ) -> None:
        self._engine, self._folder, self._name, self._say = engine, folder, name, say
        self._every_s = every_s
        self._saved_at_s = time.monotonic()
        self._number = 0
        self._slot: Slot | None = None
        os.makedirs(folder, mode=0o700, exist_ok=True)
        with open(os.path.join(folder, ".gitignore"), "w", encoding="utf-8") as ignored:
            ignored.write("*\n")
        self._lock = self._locked()
        self._catalog = engine.Catalog(engine.open_storage(folder), name)
        newest = self._catalog.newest_generation()
        self.generation = (1, 1) if newest is None else (newest[0] + 1, 1)
        self._parent: Any = None
        self._begun = False
        if restore:
            self.restore = self._find()
        elif self._catalog.committed():
            say(f"restore=False: starts from nothing; its first checkpoint replaces those in {folder}")

    def _locked(self) -> int:
        descriptor = os.open(self._path("lock"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            raise TrainingError(
                f"another process trains {self._name} with the checkpoints in {self._folder}: end it first, "
                "or give this one a folder of its own with orch.training(local_folder=…)"
            ) from None
        return descriptor

    def _path(self, what: str) -> str:
        return os.path.join(self._folder, f"{self._name}.{what}")

    def _find(self) -> RestorePoint | None:
        try:
            found = self._engine.find_and_restore(self._catalog, 0, self._path("restore"), world_size=1)
        except self._engine.NothingRestorable as error:
            raise TrainingError(f"{error}\nRemove {self._folder} to start over.") from error
        if found is None:
            return None
        for bad in found.rejected:
            self._say(f"the checkpoint of step {bad.step} is damaged and was put aside: {bad.reason}")
        self._parent = found.point
        generation = format_generation(found.point.generation)
        return RestorePoint(found.path, "storage", generation, found.point.step)

    def progress(self, step: int, epoch: int) -> Word:
        if time.monotonic() - self._saved_at_s < self._every_s:
            return self._WORD
        self._number += 1
        return Word(self._number, step, False, 0)

    def grant(self, size_bytes: int, step: int, reason: str, *, wait: bool) -> Grant | None:
        if self._slot is None or self._slot.capacity_bytes < size_bytes:
            if self._slot is not None:
                self._slot.close()
            Slot.create(self._path("slot"), size_bytes + size_bytes // 8)
            self._slot = Slot(self._path("slot"), writable=True)
        return Grant(0, self._slot)

    def saved(self, grant: Grant, snapshot: dict[str, Any]) -> None:
        """Commits. A full disk does not end the training: it is said, and the next save tries again."""
        self._saved_at_s = time.monotonic()
        try:
            if not self._begun:
                point = self._parent
                parent, step = (None, 0) if point is None else (point.generation, point.step)
                self._catalog.begin_generation(self.generation, parent, step)
                self._begun = True
            self._engine.commit(self._catalog, grant.slot)
            retention = importlib.import_module("orch_policies.retention")
            self._catalog.retain(retention.Rules(last=CHECKPOINTS_KEPT))
            self._catalog.sweep()
        except self._engine.StorageError as error:
            self._say(f"the checkpoint of step {snapshot['step']} could not be kept: {error}")

    def restored(self, step: int, source: str, seconds_s: float) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path("restore"))

    def interrupted(self, step: int, saved_step: int) -> None:
        self._say(f"left at step {step}; the same command goes on from step {saved_step}")

    def finished(self, step: int, epoch: int) -> None:
        self._say(f"finished at step {step}; checkpoints are in {self._folder}")

    def close(self) -> None:
        if self._slot is not None:
            self._slot.close()
            self._slot = None
        for what in ("slot", "restore"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path(what))
        os.close(self._lock)


def local_sink(folder: str | None, every_s: float, *, restore: bool, say: Callable[[str], None]) -> Sink:
    try:
        engine = importlib.import_module("orch_workers.checkpoint")
    except ImportError as error:
        say(f"no checkpoints are made: outside orch that needs all of orch in this interpreter ({error})")
        return UnkeptSink()
    main = getattr(sys.modules.get("__main__"), "__file__", None)
    beside = os.path.dirname(os.path.abspath(main)) if main else os.getcwd()
    stem = os.path.splitext(os.path.basename(main))[0] if main else "interactive"
    where = os.path.join(beside, FOLDER_NAME) if folder is None else os.path.abspath(folder)
    return FolderSink(engine, where, run_name(stem), every_s, restore=restore, say=say)


def run_name(stem: str) -> str:
    """A job id for a script: what ids allow of its name."""
    name = re.sub(r"[^a-z0-9]+", "-", stem.lower()).strip("-")[:NAME_CHARACTERS_MAX]
    return name or "script"
