"""In which order waiting jobs get their turn: priority, then age, then id."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True)
class Waiting:
    """`since_us`: when the job was submitted. A preempted job keeps it, so it does not go to the back."""

    job_id: str
    priority: int
    since_us: int


@dataclass(frozen=True)
class Turn:
    """`position` counts from 1. Only the first may be placed: letting a small job pass a large one that
    waits for room would let it wait for ever.
    """

    job_id: str
    position: int
    reason: str


def order(jobs: Iterable[Waiting]) -> list[Turn]:
    """Everybody's turn, the next one first. Does not depend on the order of `jobs`."""
    ordered = sorted(jobs, key=lambda job: (-job.priority, job.since_us, job.job_id))
    turns = []
    first_of_priority = 0
    for index, job in enumerate(ordered):
        if job.priority != ordered[first_of_priority].priority:
            first_of_priority = index
        if index == 0:
            reason = f"next: of the highest priority ({job.priority}) it has waited longest"
        else:
            older = index - first_of_priority
            reason = f"behind {first_of_priority} of higher priority, {older} of the same that came earlier"
        turns.append(Turn(job.job_id, index + 1, reason))
    return turns
