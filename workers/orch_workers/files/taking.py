"""Takes a copy of a set of files beside: by reflink where the file system can, else byte by byte; never a hard link,
which would change with the script's file. What changed meanwhile is not taken.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import xxhash

from orch_workers.checkpoint.blobs import PART_BYTES
from orch_workers.checkpoint.file_records import FileRecord, PartRecord
from orch_workers.files.matching import Signature
from orch_workers.files.sets import SetExamined, examine_set

COPY_BYTES = 4 << 20
FICLONE = 0x40049409
"""ioctl_ficlone(2): the two files share their blocks until one of them is written."""
_NO_CLONE = {
    errno.EOPNOTSUPP,
    errno.ENOTTY,
    errno.EXDEV,
    errno.EINVAL,
    errno.ENOSYS,
    errno.EPERM,
    errno.EBADF,
}


class ChangedError(Exception):
    """The script went on writing while its files were copied: nothing was taken."""


class Taken(NamedTuple):
    """The files `0`, `1`, … of a folder, and what was found in them."""

    files: tuple[FileRecord, ...]
    examined: SetExamined


Known = Mapping[str, tuple[Signature, FileRecord, Path]]
"""What was taken before: the file as it was, and where its copy lies."""


def take(
    root: str,
    wanted: Mapping[str, Signature],
    folder: Path,
    *,
    known: Known,
    is_still: Callable[[], bool],
) -> Taken:
    """Copies `wanted` from below `root` into `folder`. A file that is as it was when it was taken before is not read
    again. `is_still`: whether the whole set is what it was, asked when all is copied. ChangedError; OSError.
    """
    records: dict[str, FileRecord] = {}
    paths: dict[str, Path] = {}
    for number, name in enumerate(sorted(wanted)):
        signature, target = wanted[name], folder / str(number)
        if signature.link:
            records[name] = FileRecord(path=name, size_bytes=0, link=signature.link)
            continue
        before = known.get(name)
        if before is not None and before[0] == signature:
            # From one of our own copies, which nobody writes to.
            with contextlib.suppress(OSError):
                os.link(before[2], target)
                records[name], paths[name] = before[1], target
                continue
        try:
            parts = copy(Path(root, name), target)
        except FileNotFoundError as error:
            raise ChangedError(f"{name} has gone") from error
        records[name] = FileRecord(
            path=name,
            size_bytes=sum(part.size_bytes for part in parts),
            mode=signature.mode,
            mtime_ns=signature.mtime_ns,
            parts=parts,
        )
        if records[name].size_bytes != signature.size_bytes:
            raise ChangedError(f"{name} has another size")
        paths[name] = target
    if not is_still():
        raise ChangedError("the files were written while they were copied")
    newest_first = sorted(paths, key=lambda name: wanted[name].changed_ns, reverse=True)
    examined = examine_set(paths, newest_first)
    formats = {name: one.kind for name, one in examined.files.items()}
    files = tuple(
        records[name].model_copy(update={"format": formats.get(name, "")}) for name in sorted(records)
    )
    return Taken(files, examined)


def copy(source: Path, target: Path) -> tuple[PartRecord, ...]:
    """Copies a file and returns its parts with their digests."""
    with source.open("rb", buffering=0) as origin, target.open("xb", buffering=0) as out:
        cloned = _clone(origin.fileno(), out.fileno())
    if cloned:
        with target.open("rb", buffering=0) as stream:
            return _digested(stream.readinto, None)
    with source.open("rb", buffering=0) as origin, target.open("r+b", buffering=0) as out:
        return _digested(origin.readinto, out.write)


def _clone(origin: int, out: int) -> bool:
    try:
        fcntl.ioctl(out, FICLONE, origin)
    except OSError as error:
        if error.errno in _NO_CLONE:
            return False
        raise
    return True


def _digested(
    read_into: Callable[[memoryview], int | None], write: Callable[[memoryview], int | None] | None
) -> tuple[PartRecord, ...]:
    parts: list[PartRecord] = []
    buffer = memoryview(bytearray(COPY_BYTES))
    digest, size = xxhash.xxh3_128(), 0
    while True:
        room = min(COPY_BYTES, PART_BYTES - size)
        count = read_into(buffer[:room]) or 0
        if not count:
            break
        piece = buffer[:count]
        digest.update(piece)
        size += count
        while write is not None and piece:
            piece = piece[write(piece) or 0 :]
        if size == PART_BYTES:
            parts.append(PartRecord(digest=digest.hexdigest(), size_bytes=size))
            digest, size = xxhash.xxh3_128(), 0
    if size:
        parts.append(PartRecord(digest=digest.hexdigest(), size_bytes=size))
    return tuple(parts)
