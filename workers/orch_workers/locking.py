"""Locks between processes of one machine, given back by the kernel when their holder dies."""

from __future__ import annotations

import os
from pathlib import Path


def try_lock(path: Path, *, shared: bool = False) -> int | None:
    """A descriptor that holds the lock until it is closed; None: somebody else has it.

    The file may be removed by whoever holds it alone, so it is made sure that it is still the file at that path.
    """
    import fcntl  # not on every machine that packs code

    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        if path.stat().st_ino == os.fstat(descriptor).st_ino:
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    os.close(descriptor)
    return None
