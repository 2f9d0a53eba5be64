"""Where a job's time went: one book of buckets that sum to the job's age, kept event by event.

Time is booked as it passes, by the state the job was in, and moved between buckets when an event tells more: how
long the state took to load, how long training waited for a snapshot, which work was lost. What is moved is never
more than what is there, so the sum holds whatever comes, in whatever order.

Pure: events and the time that passed go in. Definitions: DESIGN section 1 (goodput, lost work).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from orch.model import events as ev
from orch.model.events import Event
from orch.model.states import State

BUCKETS: Mapping[str, str] = {
    "queued": "waited for its resources, again after a preemption",
    "starting": "from its resources to the first step",
    "restoring": "loaded its state",
    "productive": "did steps that count",
    "saving": "training waited for a snapshot to be taken",
    "lost": "did steps that had to be done again",
    "detecting": "had died or stood still, and nobody knew yet",
    "restarting": "from a failure to the first new step, backoff included",
    "stopping": "wrote its last state and was cleared away",
    "blocked": "waited for a person",
}
"""Name → what is in it. docs/cli.md has the same table."""

_OF_STATE = {
    State.QUEUED: "queued",
    State.STARTING: "starting",
    State.RUNNING: "productive",
    State.RECOVERING: "restarting",
    State.STOPPING: "stopping",
    State.BLOCKED: "blocked",
}


@dataclass(frozen=True)
class Books:
    us: Mapping[str, int] = field(default_factory=dict)
    """Bucket → microseconds."""
    unproven_us: int = 0
    """Of `productive`: since the present start, which has told no step yet and may never."""
    proven: bool = False
    down_us: int = 0
    """Booked since the last failure, until the first new step: what a controller that was away has not seen of it
    is known then from the agent.
    """
    step: int = 0
    lost_steps: int = 0

    def to_dict(self) -> dict[str, Any]:
        return {**vars(self), "us": dict(self.us)}

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Books:
        return Books(**data)

    @staticmethod
    def of_states(spent_us: Mapping[str, int]) -> Books:
        """For a job of a version that kept no books: by its states alone."""
        us: dict[str, int] = {}
        for name, spent in spent_us.items():
            bucket = bucket_of(State(name))
            us[bucket] = us.get(bucket, 0) + spent
        return Books(us=us)

    @property
    def total_us(self) -> int:
        return sum(self.us.values())


def bucket_of(state: State) -> str:
    """What passes in `state`; after an end it waits for a person who resumes it."""
    return _OF_STATE.get(state, "blocked")


def passed(books: Books, state: State, span_us: int) -> Books:
    """`span_us` have passed in `state`."""
    if span_us <= 0:
        return books
    bucket = bucket_of(state)
    books = replace(books, us={**books.us, bucket: books.us.get(bucket, 0) + span_us})
    if state is State.RUNNING and not books.proven:
        return replace(books, unproven_us=books.unproven_us + span_us)
    if state is State.RECOVERING:
        return replace(books, down_us=books.down_us + span_us)
    return books


def told(books: Books, event: Event, state: State) -> Books:
    """`event`, which is not late, in `state`; its time has been booked with `passed`."""
    here = bucket_of(state)
    match event:
        case ev.ProcessStarted() if event.rank == 0:  # of all ranks together the leader's counts
            return replace(books, proven=False, unproven_us=0) if books.proven else books
        case ev.Restored():
            spent = (
                min(_us(event.seconds_s), books.unproven_us) if here == "productive" else _us(event.seconds_s)
            )
            unproven_us = books.unproven_us - (spent if here == "productive" else 0)
            return replace(_moved(books, here, "restoring", spent), unproven_us=unproven_us)
        case ev.CheckpointCommitted():
            return _moved(books, "productive", "saving", _us(event.blocked_s))
        case ev.Recovered():
            return _recovered(books, event)
        case ev.Progressed():
            return _stepped(books, event.step)
        case ev.ProcessExited() | ev.AgentLost() | ev.GangLost():
            return _down(books, event, here)
        case ev.WorkerEnded() if event.outcome in {"left", "stopped"}:
            return _unproven_is_lost(books)
        case _:
            return books


def goodput(us: Mapping[str, int]) -> float | None:
    """Productive time over the whole, minus time queued; None before anything has run."""
    placed_us = sum(us.values()) - us.get("queued", 0)
    worked_us = us.get("productive", 0) + us.get("lost", 0) + us.get("saving", 0)
    if placed_us <= 0 or worked_us <= 0:
        return None
    return us.get("productive", 0) / placed_us


def _us(seconds_s: float | None) -> int:
    return max(0, round((seconds_s or 0.0) * 1e6))


def _moved(books: Books, source: str, target: str, span_us: int) -> Books:
    """At most what is there."""
    span_us = min(span_us, books.us.get(source, 0))
    if span_us <= 0:
        return books
    us = {**books.us, source: books.us[source] - span_us, target: books.us.get(target, 0) + span_us}
    return replace(books, us=us, unproven_us=min(books.unproven_us, us.get("productive", 0)))


def _stepped(books: Books, step: int) -> Books:
    """The first step of this start: what it took to get there was no work."""
    if not books.proven:
        target = "restarting" if books.step else "starting"
        books = _moved(books, "productive", target, books.unproven_us)
    return replace(books, proven=True, unproven_us=0, step=max(books.step, step))


def _recovered(books: Books, event: ev.Recovered) -> Books:
    unproven_us = books.unproven_us
    books = _stepped(books, event.step)
    unseen_us = _us(event.recovery_s) - books.down_us - unproven_us
    if event.recovery_s is not None and unseen_us > 0:
        books = _moved(books, "productive", "restarting", unseen_us)
    lost_us = _us(event.lost_s)
    if event.lost_s is None and event.lost_steps:
        worked_us = books.us.get("productive", 0) + books.us.get("lost", 0)
        lost_us = worked_us * event.lost_steps // max(1, books.step + books.lost_steps + event.lost_steps)
    books = _moved(books, "productive", "lost", lost_us)
    return replace(books, down_us=0, lost_steps=books.lost_steps + event.lost_steps)


def _down(books: Books, event: ev.ProcessExited | ev.AgentLost | ev.GangLost, here: str) -> Books:
    if isinstance(event, ev.ProcessExited) and event.code == 0:
        return books
    books = _unproven_is_lost(books)
    unseen = {ev.ProcessExited: "detect_s", ev.AgentLost: "silent_s"}.get(type(event))
    if unseen is None:
        return books
    detecting_us = min(_us(getattr(event, unseen)), books.us.get(here, 0))
    books = _moved(books, here, "detecting", detecting_us)
    return replace(books, down_us=books.down_us + detecting_us)


def _unproven_is_lost(books: Books) -> Books:
    """A start that has told no step: where steps are known it never worked, else it begins from nothing again."""
    target = "restarting" if books.step else "lost"
    return replace(_moved(books, "productive", target, books.unproven_us), unproven_us=0, proven=False)
