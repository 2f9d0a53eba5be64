"""Slots for a process that checkpoints by itself: memory that is gone with the process, however it ends."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from orch_workers.training.slots import HEADER_BYTES, Slot
from orch_workers.training.snapshot import write

if TYPE_CHECKING:
    from orch_workers.training.snapshot import Snapshot

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - a private folder is made in it, for as long as a restore takes
ROOM_SHARE = 8
"""A slot is made larger than needed by one part in so many, so that a state that grows a little fits it again."""


class MemorySlot:
    """One slot in anonymous memory (memfd): no name, no limit of /dev/shm, nothing to sweep."""

    def __init__(self) -> None:
        self._descriptor: int | None = None
        self._slot: Slot | None = None

    @property
    def slot(self) -> Slot:
        """The one that was filled."""
        assert self._slot is not None
        return self._slot

    def fill(self, snapshot: Snapshot, generation: tuple[int, int], step: int) -> None:
        """Copies the state; READY when this returns."""
        if self._slot is None or self._slot.capacity_bytes < HEADER_BYTES + snapshot.size_bytes:
            self.close()
            self._descriptor = os.memfd_create("orch-slot")
            path = f"/proc/self/fd/{self._descriptor}"
            Slot.create(path, snapshot.size_bytes + snapshot.size_bytes // ROOM_SHARE)
            self._slot = Slot(path, writable=True)
        write(snapshot, self._slot, generation, step)

    def close(self) -> None:
        """Gives the memory back."""
        if self._slot is not None:
            self._slot.close()
            self._slot = None
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


@contextlib.contextmanager
def scratch_slot() -> Iterator[Callable[[int], Path]]:
    """What the reader takes as its target: a slot file in memory where that has room, else on disk, removed with
    its folder at the end.
    """
    folders: list[Path] = []

    def make(size_bytes: int) -> Path:
        folder = Path(tempfile.mkdtemp(prefix="orch-restore-", dir=_folder_with_room(size_bytes)))
        folders.append(folder)
        path = folder / "slot"
        Slot.create(str(path), size_bytes)
        return path

    try:
        yield make
    finally:
        for folder in folders:
            (folder / "slot").unlink(missing_ok=True)
            folder.rmdir()


def _folder_with_room(size_bytes: int) -> Path:
    with contextlib.suppress(OSError):
        found = os.statvfs(SHARED_MEMORY)
        if found.f_bavail * found.f_frsize > size_bytes + HEADER_BYTES and os.access(SHARED_MEMORY, os.W_OK):
            return SHARED_MEMORY
    return Path(tempfile.gettempdir())
