"""Early stopping: a metric that has not become better for so many evaluations ends the training, with success."""

from __future__ import annotations

import math
from typing import Any, Callable, Mapping


class EarlyStop:
    """Counts the evaluations: steps that were given the metric. Its state is part of every checkpoint, so that a
    restart decides as the run would have that was not disturbed.
    """

    def __init__(self, rule: tuple[str, str, int] | None, note: Callable[[str, str], None]) -> None:
        """`rule`: metric, mode, patience; None: it goes on to the script's own end."""
        self.metric, self.mode, self.patience = rule or ("", "min", 0)
        self._note = note
        self.best: float | None = None
        self.best_step = 0
        self.waited = 0

    def look(self, step: int, metrics: Mapping[str, Any]) -> bool:
        """Whether this is the best so far: then its step is to be saved. Reads the metric, which may wait for a GPU,
        at the steps that are given it and at no others. What is not finite is never better.
        """
        if not self.patience or self.metric not in metrics:
            return False
        value = float(metrics[self.metric])
        if math.isfinite(value) and (self.best is None or self._is_better(value, self.best)):
            self.best, self.best_step, self.waited = value, step, 0
            return True
        self.waited += 1
        if self.waited == self.patience:
            self._note("info", self.sentence)
        return False

    def _is_better(self, value: float, best: float) -> bool:
        return value < best if self.mode == "min" else value > best

    @property
    def is_over(self) -> bool:
        return bool(self.patience) and self.waited >= self.patience

    @property
    def sentence(self) -> str:
        was = (
            "was never a finite number"
            if self.best is None
            else f"was best at step {self.best_step}: {self.best:g}"
        )
        return f"stopped early: {self.metric} {was}, and {self.waited} evaluations since were no better"

    def to_tree(self) -> dict[str, Any]:
        return {"metric": self.metric, "best": self.best, "best_step": self.best_step, "waited": self.waited}

    def load(self, stored: Any) -> None:
        """None, or of another metric: the rule is a new one, and counts from here."""
        if self.patience and stored and stored["metric"] == self.metric:
            self.best, self.best_step, self.waited = stored["best"], stored["best_step"], stored["waited"]
