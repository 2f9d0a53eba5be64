"""A process of a peer, ended with everything that it started."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

STOP_LIMIT_S = 15.0


@contextlib.contextmanager
def running(
    command: Sequence[str], env: Mapping[str, str], log_path: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """`command` in a session of its own; on leaving TERM, then KILL of all that is left of its tree."""
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            command,
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        tree = _tree(process.pid)
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_LIMIT_S)
        for other in tree:
            with contextlib.suppress(psutil.NoSuchProcess):
                other.kill()
        process.wait(STOP_LIMIT_S)
        psutil.wait_procs(tree, STOP_LIMIT_S)


def _tree(pid: int) -> list[psutil.Process]:
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


@contextlib.contextmanager
def scratch(name: str) -> Iterator[Path]:
    """A folder with a path short enough for Ray's sockets."""
    with tempfile.TemporaryDirectory(prefix=f"ob-{name[:4]}-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)
