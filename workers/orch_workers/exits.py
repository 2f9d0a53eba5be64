"""How a training process ended."""

from __future__ import annotations

from typing import NamedTuple

from orch_policies.classification import Failure, Kind


class Exit(NamedTuple):
    """It has ended, and nothing of its tree is left. `step`: where it stood; `known`: it had said so."""

    code: int | None
    signal: int | None
    at_ns: int
    """CLOCK_MONOTONIC."""
    step: int
    known: bool
    succeeded: bool

    def standing_at(self, step: int | None) -> Exit:
        """As the restart policy hears of it."""
        return self._replace(step=step or 0, known=step is not None)

    def failure(self, fatal: str | None) -> Failure:
        """What was seen of it, without the evidence that a judge adds. `fatal`: why its state can never be loaded."""
        kind: Kind = "fatal" if fatal else "process_exit"
        step = self.step if self.known else None
        return Failure(kind, exit_code=self.code, signal=self.signal, step=step, message=fatal or "")

    @property
    def why_succeeded(self) -> str:
        return "the command exited with code 0" if self.code == 0 else "the drill's last step is reached"
