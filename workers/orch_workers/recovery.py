"""From the end of one training process to the first new step of the next: where it stood, what it cost."""

from __future__ import annotations

import bisect
from dataclasses import dataclass

from orch.model.events import Recovered
from orch.model.generation import Generation
from orch_workers.ledger import Ledger
from orch_workers.training.page import Progress


@dataclass
class Phases:
    """When the parts of one start were over (CLOCK_MONOTONIC); 0 for what has not come."""

    since_ns: int = 0
    started_ns: int = 0
    hello_ns: int = 0
    restored_ns: int = 0
    standby: bool = False

    def breakdown(self, exited_ns: int, stepped_ns: int) -> dict[str, float]:
        """Seconds from the end of one process to the first new step of the next, in parts that add up to that."""
        marks = {
            "detected_s": self.since_ns,
            "started_s": self.started_ns,
            "set_up_s": self.hello_ns,
            "restored_s": self.restored_ns,
            "first_step_s": stepped_ns,
        }
        found, before = {}, exited_ns
        for name, at_ns in marks.items():
            found[name] = round(max(0, at_ns - before) / 1e9, 6)
            before = max(before, at_ns)
        return found


SEEN_MAX = 4096
"""Moments remembered of one start; of more, every other one is forgotten."""


class Recovery:
    """One start after the other. Used by the worker's loop alone."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self.reached = 0
        """The highest step that a process on this machine has completed."""
        self.restored_step: int | None = None
        self.awaiting_first_step = False
        self._had_reached = 0
        """`reached`, as it stood when the present process was started: what was lost is counted from there."""
        self._loaded = False
        self._exit_at_ns: int | None = None
        self._worked_until_ns = 0
        self._seen: list[tuple[int, int]] = []
        """(step, when it was seen first, monotonic ns), rising, of the process before this one."""

    def began(self) -> None:
        """A process was started."""
        self.restored_step, self._loaded, self.awaiting_first_step = None, False, True
        # Now, and not when the first new step is seen: a fast job may have committed later ones by then.
        self._had_reached = max(self.reached, self._ledger.highest_step)

    def restored(self, step: int) -> None:
        """It has said what it begins with."""
        self.restored_step, self._loaded = step, True

    def exited(self, at_ns: int) -> None:
        if not self.awaiting_first_step:
            self._worked_until_ns = (
                at_ns  # one that dies before its first new step has lost nothing of its own
            )
        self._exit_at_ns, self.awaiting_first_step = at_ns, False

    @property
    def readable(self) -> bool:
        """Whether the progress page can be read: before the process has said what it begins with, its page shows
        no step of its own.
        """
        return self._loaded

    def look(
        self, progress: Progress, generation: Generation, phases: Phases | None = None
    ) -> Recovered | None:
        """Takes the newest progress; what is to be told when it is the first new step after a start."""
        recovered = None
        if progress.step > (self.restored_step or 0) and self.awaiting_first_step:
            self.awaiting_first_step = False
            recovered = self._recovered(progress, generation, phases or Phases())
            self._seen = []
        if not self.awaiting_first_step and (not self._seen or progress.step > self._seen[-1][0]):
            self._remember(progress)
        if progress.step > self.reached:
            self.reached = progress.step
            self._ledger.stepped(progress.step)
        return recovered

    def _remember(self, progress: Progress) -> None:
        self._seen.append((progress.step, progress.monotonic_ns))
        if len(self._seen) > SEEN_MAX:
            del self._seen[1:-1:2]

    def _recovered(self, progress: Progress, generation: Generation, phases: Phases) -> Recovered:
        since_ns = self._exit_at_ns
        recovery_s = None if since_ns is None else (progress.monotonic_ns - since_ns) / 1e9
        restored = self.restored_step or 0
        lost = max(0, self._had_reached - restored)
        return Recovered(
            generation=generation,
            step=progress.step,
            recovery_s=recovery_s,
            lost_steps=lost,
            lost_s=self._lost_s(restored) if lost and since_ns is not None else None,
            standby=phases.standby,
            breakdown=None if since_ns is None else phases.breakdown(since_ns, progress.monotonic_ns),
        )

    def _lost_s(self, restored: int) -> float | None:
        """How long the process before had worked since it had done step `restored`; None where nobody saw that."""
        at = bisect.bisect_right(self._seen, restored, key=lambda seen: seen[0])
        if at == len(self._seen):
            return None
        if at == 0:
            since_ns = self._seen[0][1]
        else:  # between two looks: by the share of the steps
            (step, ns), (later_step, later_ns) = self._seen[at - 1], self._seen[at]
            since_ns = ns + (later_ns - ns) * (restored - step) // (later_step - step)
        return round(max(0, self._worked_until_ns - since_ns) / 1e9, 6)
