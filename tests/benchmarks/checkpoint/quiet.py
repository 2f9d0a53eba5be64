"""Between two turns: wait until what the side before has left behind has come to rest.

A client that is done may not be finished: the CRT's threads go on giving memory back for a second, and the server
tidies what it was sent. Whoever came next paid for it, by half of its own rate (seen).
"""

from __future__ import annotations

import os
import random
import time
from typing import TypeVar

import psutil

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
    end = time.monotonic() + LIMIT_S
    quiet, before = 0, _cpu_s()
    while quiet < 2 and time.monotonic() < end:
        time.sleep(WINDOW_S)
        now = _cpu_s()
        quiet = quiet + 1 if now - before < IDLE_SHARE * WINDOW_S else 0
        before = now


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
