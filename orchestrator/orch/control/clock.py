"""The controller's clock: microseconds UTC that neither jump nor go back while the machine's clock does.

What was decided for a time (a backoff, a deadline, a cordon) would otherwise come an hour early or late when somebody
sets the clock. It runs with the machine's steady clock and follows the wall clock by running a little faster or
slower, as NTP does.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

__all__ = ["Clock", "not_before", "now_us"]

SLEW_SHARE = 10
"""It gains or loses at most one part in so many: after a jump of an hour it is right again in ten."""


def _steady_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)  # counts the time that a machine sleeps, too


class Clock:
    """Thread-safe. Two readings are never in the wrong order."""

    def __init__(
        self, wall_ns: Callable[[], int] = time.time_ns, steady_ns: Callable[[], int] = _steady_ns
    ) -> None:
        self._wall_ns, self._steady_ns = wall_ns, steady_ns
        self._lock = threading.Lock()
        self._read_at_ns = steady_ns()
        self._now_ns = wall_ns()

    def now_us(self) -> int:
        with self._lock:
            read_at_ns = self._steady_ns()
            passed_ns = read_at_ns - self._read_at_ns
            behind_ns = self._wall_ns() - (self._now_ns + passed_ns)
            most_ns = passed_ns // SLEW_SHARE
            self._now_ns += passed_ns + max(-most_ns, min(most_ns, behind_ns))
            self._read_at_ns = read_at_ns
            return self._now_ns // 1000

    def not_before(self, t_us: int) -> None:
        """For a controller that begins: what its predecessor wrote down is the past, whatever the wall clock says."""
        with self._lock:
            self._now_ns = max(self._now_ns, t_us * 1000)


_clock = Clock()
now_us = _clock.now_us
not_before = _clock.not_before
