"""Simulated time: actions in the order of their time, ties in the order in which they were asked for."""

from __future__ import annotations

import heapq
import itertools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

ACTIONS_MAX = 60_000
"""More than any schedule needs by an order of magnitude: a run that gets there does not end."""


class Clock:
    def __init__(self) -> None:
        self.now_us = 1_700_000_000_000_000
        self._heap: list[tuple[int, int, Callable[[], None]]] = []
        self._order = itertools.count()

    def after(self, delay_ms: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._heap, (self.now_us + round(delay_ms * 1000), next(self._order), action))

    def run(self, until: Callable[[], bool]) -> None:
        """Until `until()` holds; AssertionError if nothing is left to do before, or too much was done."""
        for _ in range(ACTIONS_MAX):
            if until():
                return
            assert self._heap, "nothing will ever happen again, and the jobs have not ended"
            self.now_us, _, action = heapq.heappop(self._heap)
            action()
        raise AssertionError(f"no end after {ACTIONS_MAX} actions")
