"""The two slots of a rank in shared memory, and who may do what with them.

The agent owns the slots: it gives one to the training process to fill (`acquire`), holds a full one as long
as it is being written to storage or restored from, and adopts what an earlier agent of the job left on this
machine. Whoever makes a Staging must know that no earlier agent or training process still writes (the guard's
lock says so). Not thread-safe by itself; every method is short and is to be called under the owner's lock or
in its one thread, reading and writing of slots excepted.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from orch_workers.checkpoint.chain import Chain, Generation, tuple_of
from orch_workers.training.slots import HEADER_BYTES, Slot, SlotDamagedError, SlotHeader

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

SLOTS = 2
RESTORE_INDEX = SLOTS
"""The slot file that a checkpoint from storage is read into; it counts as a snapshot until a newer one is
READY.
"""
ROOM_BYTES_MIN, ROOM_SHARE = 64 << 10, 256
"""Beyond what is asked for, and as a share of it: the description grows with the digits of the step, and a new slot
costs training several times what a copy costs.
"""
LINEAGE_BYTES_MAX = 64 << 20

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_BOOT = "boot"
"""The file in which a folder says of which start of the machine its slots are."""
_RANKS = "ranks"
"""The file in which it says of how many ranks its own is one."""

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EFBIG}
_NAMES = (*(f"slot-{index}" for index in range(SLOTS)), "restore")


@dataclass(frozen=True)
class Snapshot:
    """A READY slot."""

    index: int
    path: str
    generation: Generation
    step: int
    size_bytes: int


@dataclass(frozen=True)
class Given:
    """A slot file that the training process may fill."""

    index: int
    path: str


class Staging:
    """`folder` in shared memory; `fallback` on disk, used with a warning when that is missing or too small.

    The folders are made 0700; one that belongs to another user is refused.
    """

    def __init__(
        self,
        folder: Path,
        rank: int = 0,
        *,
        fallback: Path | None = None,
        warn: Callable[[str], None] | None = None,
        world_size: int | None = None,
    ) -> None:
        """`world_size`: slots that a job of another number of ranks has left are dropped: they hold parts of other
        wholes.
        """
        self.rank, self._world_size = rank, world_size
        self._warn = warn or (lambda _: None)
        self._folders = [folder] if fallback is None else [folder, fallback]
        self._fallback_used = False
        self._writing: int | None = None
        self._holds: dict[int, set[str]] = {index: set() for index in range(SLOTS + 1)}
        self._paths: dict[int, Path] = {}
        self._snapshots: dict[int, Snapshot] = {}
        for each in self._folders:
            _drop_from_before_the_boot(each)
            _drop_of_others(each, world_size)
        self.folder = self._usable_folder()
        self._adopt()

    def _usable_folder(self) -> Path:
        for folder in self._folders:
            try:
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                found = folder.lstat()
                if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
                    raise PermissionError(errno.EPERM, "belongs to another user")
                _note_the_boot(folder)
                _note_the_ranks(folder, self._world_size)
                return folder
            except OSError as error:
                problem = f"{folder} cannot be used for snapshots ({error.strerror or error})"
                if folder == self._folders[-1]:
                    raise type(error)(error.errno, problem) from error
                self._warn(f"{problem}; they go to {self._folders[-1]}, which is slower")
        raise AssertionError("unreachable")

    def _adopt(self) -> None:
        """What an earlier agent left and is whole; a torn slot is only room."""
        for folder in self._folders:
            for index, name in enumerate(_NAMES):
                path = folder / name
                if not path.is_file():
                    continue
                snapshot = _read(index, path)
                known = self._snapshots.get(index)
                if snapshot is not None and (known is None or snapshot.step > known.step):
                    self._paths[index], self._snapshots[index] = path, snapshot
                else:
                    self._paths.setdefault(index, path)

    # saving

    def acquire(self, size_bytes: int) -> Given | None:
        """A slot with room for `size_bytes` of data and description, for the training process to fill.

        None when it is busy: one is being filled, or both are held. The newest snapshot is given away only
        when the other one is held. Raises OSError when there is room for it nowhere.
        """
        if self._writing is not None:
            return None
        free = [index for index in range(SLOTS) if not self._holds[index]]
        if not free:
            return None
        index = min(free, key=self._worth)
        self._snapshots.pop(index, None)
        path = self._make_room(index, size_bytes)
        self._writing = index
        return Given(index, str(path))

    @property
    def only_newest_is_free(self) -> bool:
        """Whether the next slot that is given away holds the newest snapshot."""
        free = [index for index in range(SLOTS) if not self._holds[index]]
        newest = next(iter(self.snapshots()), None)
        return newest is not None and free == [newest.index]

    def _worth(self, index: int) -> tuple[Generation, int]:
        snapshot = self._snapshots.get(index)
        return ((-1, -1), -1) if snapshot is None else (snapshot.generation, snapshot.step)

    def _make_room(self, index: int, size_bytes: int) -> Path:
        path = self._paths.get(index)
        if path is not None and path.is_file():
            try:
                slot = Slot(str(path))
            except (SlotDamagedError, OSError):
                pass
            else:
                capacity = slot.capacity_bytes
                slot.close()
                if capacity >= size_bytes + HEADER_BYTES:
                    return path
        return self._make(index, size_bytes)

    def _make(self, index: int, size_bytes: int) -> Path:
        """A new slot file. The old one is unlinked, never truncated: somebody may still have it mapped."""
        old = self._paths.pop(index, None)
        if old is not None:
            old.unlink(missing_ok=True)
        folders = self._folders[self._folders.index(self.folder) :]
        if self._fallback_used:
            folders = folders[-1:]
        for folder in folders:
            path = folder / _NAMES[index]
            try:
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                _note_the_boot(folder)
                _note_the_ranks(folder, self._world_size)
                path.unlink(missing_ok=True)
                Slot.create(str(path), size_bytes + max(ROOM_BYTES_MIN, size_bytes // ROOM_SHARE))
            except OSError as error:
                path.unlink(missing_ok=True)
                if error.errno not in _NO_ROOM or folder == folders[-1]:
                    raise
                self._fallback_used = True
                self._warn(
                    f"{folder} has no room for a snapshot of {size_bytes} bytes ({error.strerror}); "
                    f"snapshots go to "
                    f"{folders[-1]}, which is slower. Give the machine or container a larger /dev/shm"
                )
            else:
                self._paths[index] = path
                return path
        raise AssertionError("unreachable")

    def ready(self, index: int) -> Snapshot:
        """The training process says that it has filled the slot. SlotDamagedError when it has not."""
        if index != self._writing:
            raise SlotDamagedError(f"slot {index} was not given away")
        self._writing = None
        snapshot = _read(index, self._paths[index])
        if snapshot is None:
            raise SlotDamagedError(f"{self._paths[index]} holds no whole snapshot")
        self._snapshots[index] = snapshot
        self._drop_restored()
        return snapshot

    def abandon(self) -> None:
        """The training process has failed to fill its slot, or is gone: it is free again."""
        if self._writing is None:
            return
        index, self._writing = self._writing, None
        snapshot = _read(index, self._paths[index])
        if snapshot is not None:
            # It was whole: the process died between its last store and its word.
            self._snapshots[index] = snapshot
            self._drop_restored()

    @property
    def writing(self) -> int | None:
        """The slot that the training process is filling."""
        return self._writing

    # holding

    def hold(self, index: int, why: str) -> None:
        """Keeps a snapshot from being given away, until `release` with the same word ("upload",
        "restore").
        """
        self._holds[index].add(why)

    def release(self, index: int, why: str) -> None:
        self._holds[index].discard(why)
        self._drop_restored()

    def held(self, index: int) -> frozenset[str]:
        return frozenset(self._holds[index])

    def forget(self, snapshots: Sequence[Snapshot]) -> None:
        """They are never restored again, by whoever comes after this agent either."""
        for snapshot in snapshots:
            if self._snapshots.get(snapshot.index) == snapshot:
                del self._snapshots[snapshot.index]
                self._holds[snapshot.index].clear()
                self._paths.pop(snapshot.index).unlink(missing_ok=True)

    # restoring

    def snapshots(self) -> list[Snapshot]:
        """All READY ones, newest step first."""
        return sorted(self._snapshots.values(), key=lambda s: (s.step, s.generation), reverse=True)

    def newest_ready(self, chain: Chain) -> Snapshot | None:
        """The newest snapshot that lies on the chain, and is as whole as it was when it was made.

        Looked at again, because the training process can write to its slots at any time.
        """
        for snapshot in self.snapshots():
            if not chain.admits(snapshot.generation, snapshot.step):
                continue
            if _read(snapshot.index, self._paths[snapshot.index]) == snapshot:
                return snapshot
            del self._snapshots[snapshot.index]
        return None

    def make_restore_file(self, size_bytes: int) -> Path:
        """The file that a checkpoint is read into (the reader's `target`)."""
        self._snapshots.pop(RESTORE_INDEX, None)
        return self._make(RESTORE_INDEX, size_bytes)

    def restored(self) -> Snapshot:
        """The reader has filled the restore file; it is a snapshot now. SlotDamagedError when it is none."""
        snapshot = _read(RESTORE_INDEX, self.restore_path)
        if snapshot is None:
            raise SlotDamagedError(f"{self.restore_path} holds no whole snapshot")
        self._snapshots[RESTORE_INDEX] = snapshot
        return snapshot

    @property
    def restore_path(self) -> Path:
        return self._paths.get(RESTORE_INDEX, self.folder / _NAMES[RESTORE_INDEX])

    def _drop_restored(self) -> None:
        """Memory is given back as soon as a newer snapshot is there."""
        restored = self._snapshots.get(RESTORE_INDEX)
        if restored is None or self._holds[RESTORE_INDEX]:
            return
        if any(s.generation > restored.generation or s.step > restored.step for s in self._others()):
            del self._snapshots[RESTORE_INDEX]
            self._paths.pop(RESTORE_INDEX).unlink(missing_ok=True)

    def _others(self) -> list[Snapshot]:
        return [s for index, s in self._snapshots.items() if index != RESTORE_INDEX]

    # the chain, kept beside the slots, so that a restart from memory needs no storage

    def save_lineage(self, chain: Chain) -> None:
        """OSError when there is room for it nowhere."""
        for folder in self._folders:
            path = folder / "lineage.json"
            temporary = path.with_suffix(".new")
            try:
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                _note_the_boot(folder)
                temporary.write_text(json.dumps(chain.to_json()))
                temporary.replace(path)
            except OSError:
                with contextlib.suppress(OSError):
                    temporary.unlink()
                if folder == self._folders[-1]:
                    raise
            else:
                return

    def load_lineage(self) -> Chain | None:
        """The newest; None when there is none, or none that reads."""
        found = [chain for chain in map(_read_lineage, self._folders) if chain is not None]
        return max(found, key=lambda chain: chain.generation, default=None)

    # the end

    def sweep(self) -> None:
        """The job has ended: removes every file and the folders. Repeatable."""
        self._snapshots.clear()
        self._paths.clear()
        self._writing = None
        for folder in self._folders:
            shutil.rmtree(folder, ignore_errors=True)
            with contextlib.suppress(OSError):
                folder.parent.rmdir()  # the job's, if this was its last rank here


def _boot_id() -> str:
    try:
        return BOOT_ID.read_text().strip()
    except OSError:
        return ""


def _note_the_boot(folder: Path) -> None:
    path = folder / _BOOT
    with contextlib.suppress(OSError):  # then nothing in it is adopted
        if not path.exists():
            path.write_text(_boot_id())


def _note_the_ranks(folder: Path, world_size: int | None) -> None:
    with contextlib.suppress(OSError):  # as of an agent before there was this note: taken for the same number
        if world_size is not None:
            (folder / _RANKS).write_text(str(world_size))


def _drop_of_others(folder: Path, world_size: int | None) -> None:
    """Slots of a job of another number of ranks. The chain is the same."""
    with contextlib.suppress(OSError):
        if world_size is None or (folder / _RANKS).read_text() == str(world_size):
            return
        for name in _NAMES:
            (folder / name).unlink(missing_ok=True)


def _drop_from_before_the_boot(folder: Path) -> None:
    """Slots on a disk outlive a power loss, but not whole: their words READY may be there without their data."""
    path = folder / _BOOT
    try:
        is_of_now = path.read_text() == _boot_id()
    except OSError:
        is_of_now = False
    if not is_of_now:
        for name in (*_NAMES, "lineage.json", _BOOT, _RANKS):
            with contextlib.suppress(OSError):
                (folder / name).unlink()


def _read_lineage(folder: Path) -> Chain | None:
    path = folder / "lineage.json"
    try:
        if path.stat().st_size > LINEAGE_BYTES_MAX:
            return None
        return Chain.from_json(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None


def _read(index: int, path: Path) -> Snapshot | None:
    """What stands in a slot file, if it is whole."""
    try:
        slot = Slot(str(path))
    except (SlotDamagedError, OSError):
        return None
    try:
        header: SlotHeader = slot.check()
    except SlotDamagedError:
        return None
    finally:
        slot.close()
    return Snapshot(index, str(path), tuple_of(header.generation), header.step, header.data_bytes)
