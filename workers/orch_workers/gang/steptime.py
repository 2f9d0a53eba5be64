"""How fast a rank is."""

from __future__ import annotations

RATE_SPAN_S = 2.0
"""Over so long the time of a step is taken."""


class StepTime:
    """How long a step takes, over the last RATE_SPAN_S and at least one step. For one thread; read by any."""

    def __init__(self) -> None:
        self.step_s: float | None = None
        self._step, self._at_ns = 0, 0

    def look(self, step: int, at_ns: int) -> None:
        if not self._at_ns or step < self._step:
            self._step, self._at_ns = step, at_ns
        elif step > self._step and at_ns > self._at_ns:
            self.step_s = (at_ns - self._at_ns) / 1e9 / (step - self._step)
            if at_ns - self._at_ns > RATE_SPAN_S * 1e9:
                self._step, self._at_ns = step, at_ns
