"""From the end of one training process to the first new step of the next: where it stood, what it cost."""

from __future__ import annotations

from orch.model.events import Recovered
from orch.model.generation import Generation
from orch_workers.ledger import Ledger
from orch_workers.training.page import Progress


class Recovery:
    """One start after the other. Used by the worker's loop alone."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self.reached = 0
        """The highest step that a process on this machine has completed."""
        self.restored_step: int | None = None
        self.awaiting_first_step = False
        self._loaded = False
        self._exit_at_ns: int | None = None

    def began(self) -> None:
        """A process was started."""
        self.restored_step, self._loaded, self.awaiting_first_step = None, False, True

    def restored(self, step: int) -> None:
        """It has said what it begins with."""
        self.restored_step, self._loaded = step, True

    def exited(self, at_ns: int) -> None:
        self._exit_at_ns, self.awaiting_first_step = at_ns, False

    @property
    def readable(self) -> bool:
        """Whether the progress page can be read: before the process has said what it begins with, its page shows
        no step of its own.
        """
        return self._loaded

    def look(self, progress: Progress, generation: Generation) -> Recovered | None:
        """Takes the newest progress; what is to be told when it is the first new step after a start."""
        recovered = None
        if progress.step > (self.restored_step or 0) and self.awaiting_first_step:
            self.awaiting_first_step = False
            recovered = self._recovered(progress, generation)
        if progress.step > self.reached:
            self.reached = progress.step
            self._ledger.stepped(progress.step)
        return recovered

    def _recovered(self, progress: Progress, generation: Generation) -> Recovered:
        since_ns = self._exit_at_ns
        recovery_s = None if since_ns is None else (progress.monotonic_ns - since_ns) / 1e9
        lost = max(0, max(self.reached, self._ledger.highest_step) - (self.restored_step or 0))
        return Recovered(generation=generation, step=progress.step, recovery_s=recovery_s, lost_steps=lost)
