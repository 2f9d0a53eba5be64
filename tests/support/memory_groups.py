"""Memory groups (cgroups) with a limit, for processes that the kernel is to kill."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

GROUPS = (("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max"))
"""Of version 1, and of version 2."""


@contextmanager
def limited_group(limit_bytes: int) -> Iterator[Path | None]:
    """A group of our own with a real limit; None where this machine allows none."""
    for root, limit in GROUPS:
        folder = Path(root) / f"orch-test-{os.getpid()}"
        try:
            folder.mkdir()
            (folder / limit).write_text(str(limit_bytes))
        except OSError:
            if folder.is_dir():
                folder.rmdir()
            continue
        try:
            yield folder
        finally:
            folder.rmdir()
        return
    yield None
