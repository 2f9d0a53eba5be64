"""Puts a version where the script looks for it, before its command starts.

Each file appears whole or not at all. What matches the job's patterns and is no part of the version was left by a
start that did not come to its end: it is set aside, not deleted. Files are placed in the order in which the script
wrote them, because scripts ask for the newest.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from orch_workers.checkpoint.file_records import FileRecord
from orch_workers.checkpoint.staging import Snapshot
from orch_workers.files.local import Local, Version
from orch_workers.files.matching import OWN_PREFIX, Signature
from orch_workers.files.taking import copy

NAME_CHARS_MAX = 200
ASIDE_MAX = 3
"""Starts whose leftovers are kept, the newest."""


def place(
    version: Version,
    snapshot: Snapshot,
    root: Path,
    found: Mapping[str, Signature],
    aside: Path,
) -> list[str]:
    """Returns the names of what was set aside. `found`: what matches below `root` now. `aside`: a folder that is made
    when it is needed. OSError.
    """
    here = dict(version.here)
    wanted = {file.path: number for number, file in enumerate(version.files)}
    moved = []
    for name in sorted(found):
        if name not in wanted and name not in version.left_out:
            set_aside(root, name, aside)
            moved.append(name)
    for file in sorted(version.files, key=lambda file: file.mtime_ns):
        if file.path in found and found[file.path] == here.get(file.path):
            continue
        target = root / file.path
        if target.is_dir() and not target.is_symlink():
            set_aside(root, file.path, aside)
        _write(file, Local.file_of(snapshot, wanted[file.path]), target)
    return moved


def _write(file: FileRecord, source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f"{OWN_PREFIX}{target.name}"[:NAME_CHARS_MAX])
    try:
        with contextlib.suppress(FileNotFoundError):
            beside.unlink()
        if file.link:
            beside.symlink_to(file.link)
        else:
            copy(source, beside)
            beside.chmod(file.mode)
            os.utime(beside, ns=(file.mtime_ns, file.mtime_ns))
        beside.replace(target)
    finally:
        with contextlib.suppress(OSError):
            beside.unlink()


def set_aside(root: Path, name: str, aside: Path) -> None:
    """Moves a file or folder from below `root` to below `aside`."""
    target = aside / name
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    shutil.move(root / name, target)


def tidy_aside(folder: Path) -> None:
    """Keeps the leftovers of the newest starts."""
    kept = sorted(folder.iterdir())[-ASIDE_MAX:] if folder.is_dir() else []
    for old in folder.iterdir() if folder.is_dir() else ():
        if old not in kept:
            shutil.rmtree(old, ignore_errors=True)
