"""Checkpoints on a local or shared POSIX file system.

An object is written beside its place, synced, linked to its name and the folder synced: a name is there only
with its whole content, and `link` refuses to replace (a rename would let two writers both "win").
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import time
from pathlib import Path
from typing import TYPE_CHECKING

from orch_workers.checkpoint import direct as direct_io
from orch_workers.checkpoint.errors import (
    AlreadyExists,
    NotFound,
    StorageError,
    StorageRefused,
    StorageUnavailable,
)
from orch_workers.checkpoint.objects import TEMPORARY_PREFIX, Entry, Storage, checked_path

if TYPE_CHECKING:
    from collections.abc import Sequence

FOLDER_TRIES_MAX = 50
"""A folder may be pruned by a deletion between its making and its use; so often it is made again."""

_REFUSALS = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG}
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EINVAL}


class LocalStorage(Storage):
    """A folder. `unfenced`: use it even where the file system has no hard links."""

    def __init__(self, root: Path, *, unfenced: bool = False) -> None:
        super().__init__(root.absolute().as_uri(), unfenced=unfenced)
        self.root = root.absolute()
        self._way_is_synced = False

    def _create(self, path: str, buffers: Sequence[memoryview]) -> None:
        target = self._file(path)
        if target.exists():
            raise AlreadyExists(f"{target} exists already")
        temporary = target.with_name(f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}")
        try:
            descriptor, made = self._open_in_folder(temporary)
            try:
                try:
                    direct_io.write_all(descriptor, buffers)
                    os.fsync(descriptor)
                    direct_io.forget(descriptor)
                finally:
                    os.close(descriptor)
                self._publish(temporary, target)
            finally:
                with contextlib.suppress(FileNotFoundError):
                    temporary.unlink()
            self._sync_folders(target.parent, made)
        except FileNotFoundError as error:
            why = "its folder was removed meanwhile, or cannot be made there"
            raise StorageUnavailable(f"cannot write {target}: {why}") from error
        except OSError as error:
            raise _translated(error, f"cannot write {target}") from error

    def _open_in_folder(self, temporary: Path) -> tuple[int, set[Path]]:
        """The new file, which keeps its folder from being pruned, and the folders that were made for it."""
        made: set[Path] = set()
        for attempt in range(FOLDER_TRIES_MAX):
            made |= _make_folder(temporary.parent)
            try:
                return os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o666), made
            except FileNotFoundError:
                if attempt == FOLDER_TRIES_MAX - 1:
                    raise
        raise AssertionError("unreachable")

    def _publish(self, temporary: Path, target: Path) -> None:
        try:
            os.link(temporary, target)
        except FileExistsError as error:
            raise AlreadyExists(f"{target} exists already") from error
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            if not self.unfenced:
                raise StorageRefused(
                    f"the file system of {self.root} has no hard links, so two writers could both "
                    f"commit the same "
                    f"checkpoint; use another storage, or set checkpoint.unfenced: true to accept that"
                ) from error
            temporary.replace(target)

    def _sync_folders(self, folder: Path, made: set[Path]) -> None:
        """Makes the way to an object durable. All of it: who made a folder may not have synced it yet."""
        while True:
            _sync_folder(folder)
            if folder.parent == folder or not (folder in made or self.root in folder.parents):
                break
            folder = folder.parent
        if not self._way_is_synced:
            # Once, above the root too: a writer that was killed may have made it.
            for above in self.root.parents:
                with contextlib.suppress(OSError):  # one that may not be read was not made by orch
                    _sync_folder(above)
            self._way_is_synced = True

    def settle(self, path: str) -> None:
        target = self._file(path)
        try:
            descriptor = os.open(target, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            self._sync_folders(target.parent, set())
        except OSError as error:
            raise _translated(error, f"cannot sync {target}") from error

    def size(self, path: str) -> int:
        target = self._file(path)
        try:
            return target.stat().st_size
        except OSError as error:
            raise _translated(error, f"cannot read {target}") from error

    def read(self, path: str, start: int | None = None, end: int | None = None) -> bytes:
        target = self._file(path)
        try:
            with target.open("rb", buffering=0) as file:
                if start:
                    file.seek(start)
                if end is None:
                    return file.read()
                left = os.fstat(file.fileno()).st_size - (start or 0)
                wanted = max(0, min(end - (start or 0), left))  # as much is allocated at once
                parts = []
                while wanted and (part := file.read(wanted)):
                    parts.append(part)
                    wanted -= len(part)
                return b"".join(parts)
        except OSError as error:
            raise _translated(error, f"cannot read {target}") from error

    def read_into(self, path: str, start: int, view: memoryview) -> int:
        target = self._file(path)
        try:
            with contextlib.ExitStack() as opened:
                descriptor = _open_to_read(target, opened)
                direct = None
                if len(view) >= direct_io.DIRECT_BYTES_MIN:
                    with contextlib.suppress(OSError):  # a file system without it
                        direct = _open_to_read(target, opened, os.O_DIRECT)
                return direct_io.read_into(descriptor, start, view, direct=direct)
        except OSError as error:
            raise _translated(error, f"cannot read {target}") from error

    def delete(self, path: str) -> None:
        target = self._file(path)
        try:
            with contextlib.suppress(FileNotFoundError):
                target.unlink()
            # In order: a manifest must not come back when its shards are gone. Also when it is gone already: who
            # removed it may have been killed before this.
            folder = _sync_nearest(target.parent)
        except OSError as error:
            raise _translated(error, f"cannot delete {target}") from error
        while folder != self.root and self.root in folder.parents:
            try:
                folder.rmdir()
            except OSError:
                break  # not empty, or gone already
            folder = folder.parent

    def list(self, prefix: str = "") -> list[Entry]:
        top = self._file(prefix) if prefix else self.root
        found: list[Entry] = []
        try:
            for name, stat in _files(top):
                relative = name.relative_to(self.root).as_posix()
                found.append(Entry(relative, stat.st_size, stat.st_mtime_ns // 1000))
        except OSError as error:
            raise _translated(error, f"cannot list {top}") from error
        return sorted(found)

    def folders(self) -> Sequence[str]:
        try:
            return sorted(
                entry.name for entry in os.scandir(self.root) if entry.is_dir(follow_symlinks=False)
            )
        except OSError as error:
            raise _translated(error, f"cannot list {self.root}") from error

    def sweep_temporaries(self, min_age_s: float) -> int:
        """Removes what writers that were killed left beside their targets. Returns how many."""
        oldest_ns = time.time_ns() - int(min_age_s * 1e9)
        removed = 0
        for folder, _, names in os.walk(self.root):
            for name in names:
                file = Path(folder, name)
                with contextlib.suppress(OSError):
                    if name.startswith(TEMPORARY_PREFIX) and file.stat().st_mtime_ns <= oldest_ns:
                        file.unlink()
                        removed += 1
        return removed

    def _file(self, path: str) -> Path:
        return self.root / checked_path(path)


def _files(top: Path) -> list[tuple[Path, os.stat_result]]:
    """All files below `top`, without temporaries; what is deleted meanwhile is left out."""
    found = []
    folders = [top]
    while folders:
        folder = folders.pop()
        try:
            entries = list(os.scandir(folder))
        except FileNotFoundError:
            continue
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                folders.append(Path(entry.path))
            elif not entry.name.startswith(TEMPORARY_PREFIX):
                with contextlib.suppress(FileNotFoundError):
                    found.append((Path(entry.path), entry.stat()))
    return found


def _make_folder(folder: Path) -> set[Path]:
    """Makes a folder and those above it. Returns the new ones."""
    missing: list[Path] = []
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    for new in reversed(missing):
        try:
            new.mkdir()
        except FileExistsError:
            continue
        except FileNotFoundError:
            break  # pruned meanwhile: the caller tries again
    return set(missing)


def _open_to_read(target: Path, opened: contextlib.ExitStack, flags: int = 0) -> int:
    descriptor = os.open(target, os.O_RDONLY | os.O_CLOEXEC | flags)
    opened.callback(os.close, descriptor)
    return descriptor


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_nearest(folder: Path) -> Path:
    """Syncs a folder, or where it is gone, the nearest above it. Returns which."""
    while True:
        try:
            _sync_folder(folder)
        except FileNotFoundError:
            folder = folder.parent
        else:
            return folder


def _translated(error: OSError, what: str) -> StorageError:
    sentence = f"{what}: {error.strerror or error}"
    if isinstance(error, FileNotFoundError):
        return NotFound(sentence)
    if error.errno in _REFUSALS:
        return StorageRefused(sentence)
    return StorageUnavailable(sentence)
