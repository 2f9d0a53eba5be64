"""Which files of a working folder a job's patterns name, and what tells that one has changed."""

# ruff: noqa: PTH112, PTH113, PTH115, PTH117, PTH118, PTH120  Looked at many times a second: pathlib is slower.

from __future__ import annotations

import fnmatch
import os
import re
import stat
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

from orch_workers.checkpoint.errors import CheckpointError

OWN_PREFIX = ".orch-"
"""Names that begin like this are orch's own, and match nothing."""
FILES_MAX = 10_000
"""Files of one set."""
ENTRIES_MAX = 200_000
"""Entries of folders that are looked at for one set."""


class TooManyError(CheckpointError):
    """The patterns name more than a set may have; the sentence is for people."""


class Signature(NamedTuple):
    """Of a file: another content comes with another one. A link has its target, and nothing else."""

    device: int = 0
    inode: int = 0
    size_bytes: int = 0
    mtime_ns: int = 0
    ctime_ns: int = 0
    mode: int = 0
    link: str = ""

    @property
    def changed_ns(self) -> int:
        return max(self.mtime_ns, self.ctime_ns)


def find(root: str, patterns: Sequence[str]) -> dict[str, Signature]:
    """The files that match, by their path below `root` with `/`.

    A pattern is a path, a folder (all below it), or a glob from the top (`*.pt`, `runs/**/model.h5`). Links to files
    inside the folder are links here, too; other links are left out. What goes while it is looked at is left out.
    """
    found: dict[str, Signature] = {}
    budget = [ENTRIES_MAX]
    for pattern in patterns:
        parts = [part for part in pattern.split("/") if part not in {"", "."}]
        for name in _expand(root, "", parts, budget):
            if name not in found and (signature := _signature(root, name)) is not None:
                found[name] = signature
                if len(found) > FILES_MAX:
                    raise TooManyError(f"checkpoint.files: more than {FILES_MAX} files match")
    return found


def _expand(root: str, base: str, parts: list[str], budget: list[int]) -> Iterator[str]:
    """Names below `base` that `parts` match; a folder that matches stands for all below it."""
    if not parts:
        yield from _everything(root, base, budget)
        return
    part, rest = parts[0], parts[1:]
    if part == "**":
        yield from _expand(root, base, rest or ["*"], budget) if rest else _everything(root, base, budget)
        if rest:
            for entry in _entries(root, base, budget):
                if entry.is_dir(follow_symlinks=False):
                    yield from _expand(root, _join(base, entry.name), parts, budget)
    elif _is_plain(part):
        if os.path.lexists(os.path.join(root, base, part)):
            yield from _expand(root, _join(base, part), rest, budget)
    else:
        matches = _matcher(part)
        for entry in _entries(root, base, budget):
            if matches.fullmatch(entry.name):
                yield from _expand(root, _join(base, entry.name), rest, budget)


def _everything(root: str, base: str, budget: list[int]) -> Iterator[str]:
    """The file `base`, or all files below the folder `base`."""
    full = os.path.join(root, base)
    if not os.path.isdir(full):
        yield base
        return
    for entry in _entries(root, base, budget):
        name = _join(base, entry.name)
        if entry.is_dir(follow_symlinks=False):
            yield from _everything(root, name, budget)
        else:
            yield name


def _entries(root: str, base: str, budget: list[int]) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(os.path.join(root, base)) as listed:
            entries = list(listed)
    except OSError:
        return []
    entries = [entry for entry in entries if not entry.name.startswith(OWN_PREFIX)]
    budget[0] -= len(entries)
    if budget[0] < 0:
        raise TooManyError(f"checkpoint.files: the folders to be looked into hold over {ENTRIES_MAX} entries")
    return entries


def _signature(root: str, name: str) -> Signature | None:
    full = os.path.join(root, name)
    try:
        found = os.lstat(full)
        if stat.S_ISLNK(found.st_mode):
            target = os.readlink(full)
            inside = os.path.normpath(os.path.join(os.path.dirname(name), target))
            is_inside = not os.path.isabs(target) and not inside.startswith("..")
            return Signature(link=target) if is_inside and os.path.isfile(full) else None
    except OSError:
        return None
    if not stat.S_ISREG(found.st_mode):
        return None
    return Signature(
        found.st_dev,
        found.st_ino,
        found.st_size,
        found.st_mtime_ns,
        found.st_ctime_ns,
        stat.S_IMODE(found.st_mode),
    )


def _join(base: str, name: str) -> str:
    return f"{base}/{name}" if base else name


def _is_plain(part: str) -> bool:
    return not any(character in part for character in "*?[")


@lru_cache(maxsize=256)
def _matcher(part: str) -> re.Pattern[str]:
    return re.compile(fnmatch.translate(part))
