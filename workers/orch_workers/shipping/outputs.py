"""Which files of a working folder are the job's outputs."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from pathspec import GitIgnoreSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

FILES_MAX = 100_000
"""Entries of the working folder that are looked at."""


class OutputsError(ValueError):
    """A pattern leaves the folder, or the folder holds too much."""


def collect(
    workdir: Path, patterns: Sequence[str], on_skipped: Callable[[str, str], None] | None = None
) -> list[str]:
    """Paths of the matching files, relative to the folder, with `/`, sorted.

    A pattern is a path (`model.ckpt`), a folder (`plots`: all below it) or a glob from the folder's top
    (`*.csv`, `runs/**/metrics.json`). Links are followed only if they end at a file inside the folder; what
    matches and is left out is told to `on_skipped(path, reason)`. A pattern that matches nothing is no error:
    the job may not have come that far.
    """
    for pattern in patterns:
        _check(pattern)
    if not patterns or not workdir.is_dir():
        return []
    # Anchored at the top: git's own rule would find `model.ckpt` at any depth.
    wanted = GitIgnoreSpec.from_lines(f"/{PurePosixPath(pattern)}" for pattern in patterns)
    root = workdir.resolve()
    found = []
    for name in _walk(root):
        if not wanted.match_file(name):
            continue
        reason = _why_not(root, root / name)
        if reason is None:
            found.append(name)
        elif on_skipped is not None:
            on_skipped(name, reason)
    return sorted(found)


def _check(pattern: str) -> None:
    parts = PurePosixPath(pattern).parts
    if not parts or pattern.startswith("/") or ".." in parts or "\0" in pattern:
        raise OutputsError(f"outputs: {pattern!r} does not stay inside the working folder; name a path in it")


def _walk(root: Path) -> Iterable[str]:
    """Every entry that is no real folder; links to folders are entries, not ways."""
    seen = 0
    for folder, subfolders, names in os.walk(root):
        links = [name for name in subfolders if os.path.islink(os.path.join(folder, name))]  # noqa: PTH114, PTH118
        seen += len(names) + len(subfolders)
        if seen > FILES_MAX:
            raise OutputsError(f"{root} holds more than {FILES_MAX} files; outputs are not looked for in it")
        below = Path(folder).relative_to(root)
        for name in names + links:
            yield (below / name).as_posix()


def _why_not(root: Path, path: Path) -> str | None:
    try:
        target = path.resolve(strict=True)
    except (OSError, RuntimeError):
        return "a link that leads nowhere" if path.is_symlink() else "it has gone"
    if not target.is_relative_to(root):
        return f"a link that leaves the working folder ({target})"
    if target.is_dir():
        return "a link to a folder"
    return None if target.is_file() else "neither a file nor a folder"
