"""Which files the processes of a job have open for writing, as /proc knows it: descriptors and shared mappings.

proc(5): `/proc/PID/fd/N` leads to the very file, whatever it is called now; `/proc/PID/fdinfo/N` has its flags in
octal; a line of `/proc/PID/maps` with `w` and `s` is memory that is written back to the file, whose descriptor may be
closed. A process that goes while it is looked at writes no more.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

PROC = Path("/proc")


class Open(NamedTuple):
    """A regular file that is open for writing."""

    device: int
    inode: int
    path: str
    size_bytes: int
    appends: bool
    """It is only appended to: a log, which is never done."""


def open_for_writing(pids: Iterable[int], proc: Path = PROC) -> list[Open]:
    """All of them, each once."""
    found: dict[tuple[int, int], Open] = {}
    for pid in pids:
        for one in (*_descriptors(proc / str(pid)), *_mappings(proc / str(pid))):
            key = (one.device, one.inode)
            if key not in found or (found[key].appends and not one.appends):
                found[key] = one
    return list(found.values())


def _descriptors(process: Path) -> Iterator[Open]:
    try:
        links = list((process / "fd").iterdir())
    except OSError:
        return
    for link in links:
        try:
            seen = link.stat()
            if not stat.S_ISREG(seen.st_mode):
                continue
            flags = _flags(process / "fdinfo" / link.name)
            if flags & os.O_ACCMODE in {os.O_WRONLY, os.O_RDWR}:
                appends = bool(flags & os.O_APPEND)
                yield Open(seen.st_dev, seen.st_ino, str(link.readlink()), seen.st_size, appends)
        except OSError:
            continue


def _flags(info: Path) -> int:
    for line in info.read_bytes().splitlines():
        name, _, value = line.partition(b":")
        if name == b"flags":
            return int(value, 8)
    return 0


def _mappings(process: Path) -> Iterator[Open]:
    try:
        lines = (process / "maps").read_bytes().splitlines()
    except OSError:
        return
    for line in lines:
        # address permissions offset device inode path
        parts = line.split(None, 5)
        if len(parts) < 6 or parts[1][1:2] != b"w" or parts[1][3:4] != b"s" or parts[4] == b"0":
            continue
        path = os.fsdecode(parts[5])
        try:
            # Not the line's own device: file systems of several devices (btrfs, overlayfs) have another one there.
            seen = Path(path).stat()
        except OSError:
            continue
        if seen.st_ino == int(parts[4]) and stat.S_ISREG(seen.st_mode):
            yield Open(seen.st_dev, seen.st_ino, path, seen.st_size, appends=False)
