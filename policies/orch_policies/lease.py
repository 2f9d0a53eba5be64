"""How long an agent may go on without its cluster.

Whoever cannot hear the cluster may have been declared dead long ago, and somebody else may do its work: fencing keeps
what it writes off the chain, and this ends it. Nothing is decided by one unanswered question, nor by time in which
nobody asked: a machine that was frozen asks first.

The controller is not the cluster: it may be away for as long as it likes.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

LOOKS_MIN = 3
"""Questions without an answer, at least, before a lease can be over."""
STRIKES = 2
"""Answers in a row that this node is dead, before they are believed."""

Answer = Literal["alive", "dead", "silent"]
"""What the cluster says of this node; silent: nothing, within the time it had."""
Verdict = Literal["held", "expired", "void"]
"""expired: nothing was heard for longer than the lease. void: the cluster has given this node up."""


class Contact(NamedTuple):
    """With the cluster, so far. Times on one monotonic clock."""

    looked_s: float
    """When it was last asked."""
    out_s: float = 0.0
    """For how long it has been asked in vain."""
    silences: int = 0
    strikes: int = 0

    def heard(self, answer: Answer, now_s: float, turn_s: float) -> Contact:
        """After one question. `turn_s`: longest time between two, awake; what goes beyond was slept."""
        if answer == "alive":
            return Contact(now_s)
        if answer == "dead":
            return Contact(now_s, strikes=self.strikes + 1)
        waited_s = min(max(0.0, now_s - self.looked_s), turn_s)
        return Contact(now_s, self.out_s + waited_s, self.silences + 1)


def judge(contact: Contact, lease_s: float) -> Verdict:
    if contact.strikes >= STRIKES:
        return "void"
    if contact.silences >= LOOKS_MIN and contact.out_s > lease_s:
        return "expired"
    return "held"


def pause_s(contact: Contact, lease_s: float) -> float:
    """Until the next question: a tenth of the lease while all is well, soon again when it is not."""
    calm_s = min(lease_s / 10, 5.0)
    return calm_s if not contact.silences and not contact.strikes else min(calm_s, 1.0)


def limit_s(lease_s: float) -> float:
    """How long one question waits for its answer."""
    return min(lease_s / 5, 5.0)
