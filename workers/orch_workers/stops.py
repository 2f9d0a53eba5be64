"""What a worker was told about its end: by the controller, or by a notice that its place goes away."""

from __future__ import annotations

import threading
import time


class Stop:
    """Asked more than once: the first word's moment counts, the newest word's outcome, the soonest deadline."""

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.outcome, self.reason = "stopped", ""
        self.until_s: float | None = None
        """Until when (monotonic) the newest snapshot may travel to storage; None: nobody said."""
        self._at_ns: int | None = None

    def ask(self, outcome: str, reason: str = "", until_s: float | None = None) -> None:
        if self._at_ns is None:
            self._at_ns = time.monotonic_ns()
        self.outcome, self.reason = outcome, reason or self.reason
        if until_s is not None:
            self.until_s = until_s if self.until_s is None else min(until_s, self.until_s)
        self.asked.set()

    @property
    def was_asked(self) -> bool:
        return self._at_ns is not None

    def was_before(self, at_ns: int) -> bool:
        """Whether it was asked for at `at_ns` already."""
        return self._at_ns is not None and at_ns >= self._at_ns
