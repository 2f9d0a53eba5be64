"""Between two turns: wait until what the side before has left behind has come to rest.

A client that is done may not be finished: the CRT's threads go on giving memory back for a second, and the server
tidies what it was sent. Whoever came next paid for it, by half of its own rate (seen).
"""

from __future__ import annotations

import contextlib
import os
import random
from typing import TypeVar

import psutil

from support.server import WaitedError, wait_for

Side = TypeVar("Side")

WINDOW_S = 0.2
IDLE_SHARE = 0.05
"""Of one core, in one window, by this process and all below it."""
LIMIT_S = 15.0


def in_turn(sides: dict[str, Side], number: int) -> list[tuple[str, Side]]:
    """The sides in the order of one round: another one each time, and everyone after everyone else in the long run."""
    order = list(sides.items())
    random.Random(number).shuffle(order)
    return order


def settle() -> None:
    """Returns when two windows on end were quiet, or after LIMIT_S."""
    windows = _Windows()
    with contextlib.suppress(WaitedError):
        wait_for("two windows on end are quiet", lambda: windows.quiet() >= 2, LIMIT_S, WINDOW_S)


class _Windows:
    """Looked at once in WINDOW_S."""

    def __init__(self) -> None:
        self._quiet, self._before_s = -1, 0.0

    def quiet(self) -> int:
        """How many windows on end have been quiet by now; the first look only begins one."""
        now_s = _cpu_s()
        is_quiet = self._quiet < 0 or now_s - self._before_s < IDLE_SHARE * WINDOW_S
        self._quiet, self._before_s = self._quiet + 1 if is_quiet else 0, now_s
        return self._quiet


def _cpu_s() -> float:
    own = psutil.Process(os.getpid())
    used = 0.0
    for process in (own, *own.children(recursive=True)):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        used += times.user + times.system
    return used
