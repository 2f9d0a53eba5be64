"""The leader's books: the pure restart policy with what has been charged so far."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from orch_policies import restart


class Ledger:
    """Budgets, charges and history of a job, carried from decision to decision. Thread-safe."""

    def __init__(self, policy: Mapping[str, Any]) -> None:
        self._budgets = restart.Budgets.from_dict(dict(policy.get("budgets") or {}))
        charges, history = policy.get("charges"), policy.get("history")
        self._charges = restart.Charges.from_dict(dict(charges)) if charges else restart.Charges()
        self._history = restart.History.from_dict(dict(history)) if history else restart.History()
        self._seed = str(policy.get("seed", ""))
        self._lock = threading.Lock()

    @property
    def highest_step(self) -> int:
        return self._history.highest_step

    def decide(self, failure: restart.Failure, mark: str) -> restart.Decision:
        """Decides and books one failure; `mark` tells this failure from others in the jitter."""
        with self._lock:
            decision = restart.decide(
                self._budgets, self._charges, self._history, failure, f"{self._seed}/{mark}"
            )
            self._charges, self._history = restart.record(self._charges, self._history, failure, decision)
            return decision

    def stepped(self, step: int) -> None:
        with self._lock:
            self._history = restart.stepped(self._history, step)

    def committed(self, step: int) -> None:
        with self._lock:
            self._charges, self._history = restart.committed(self._charges, self._history, step)
