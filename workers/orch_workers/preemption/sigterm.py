"""SIGTERM to the agent: how systemd, Kubernetes, Slurm and a machine that shuts down say that it must go.

Ray runs its own loop in the main thread, where a handler in Python may have to wait for its turn. The interpreter's
wake-up descriptor is written in the signal handler itself, so the thread that reads it knows at once.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

GRACE_S = 25.0
"""Nobody says how long there is; Kubernetes and Slurm's KillWait give 30 s, most others more."""


def install(on_term: Callable[[], None]) -> None:
    """From now on `on_term` is called, in a thread of its own, for each SIGTERM. In the main thread only."""
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    signal.signal(signal.SIGTERM, lambda _number, _frame: None)
    signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)

    def follow() -> None:
        with contextlib.suppress(OSError):
            while numbers := os.read(read_end, 64):
                for _ in range(numbers.count(signal.SIGTERM)):
                    on_term()

    threading.Thread(target=follow, name="sigterm", daemon=True).start()
