"""A notice, and what gives one."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

Kind = Literal["preempt", "maintenance", "rebalance"]
"""preempt: the machine is taken back. maintenance: it is stopped or restarted. rebalance: either may happen; nothing
is certain yet, so the state is saved and the worker stays."""


class SourceError(Exception):
    """The source could not be asked, or answered nonsense; it is asked again."""


class SourceSilentError(SourceError):
    """No answer within the limit: of a source that was never heard, this may mean that it is not there."""


class Moment(NamedTuple):
    """One point in time on both clocks, seconds: the monotonic one decides, the wall clock is for people."""

    monotonic_s: float
    wall_s: float

    @classmethod
    def now(cls) -> Moment:
        return cls(time.monotonic(), time.time())


@dataclass(frozen=True)
class Notice:
    source: str
    kind: Kind
    reason: str
    """A sentence without its full stop."""
    key: str
    """The same key is the same notice, also to the next agent on this machine; empty where it is told only once."""
    deadline: Moment | None = None
    """When the place is gone; None where nobody says."""
    machine: bool = True
    """The machine goes away; else only this job gives up its place."""

    @property
    def leaves(self) -> bool:
        return self.kind != "rebalance"


def deadline_at(then_wall_s: float, now: Moment, source_wall_s: float | None = None) -> Moment:
    """A wall-clock time of the source's on our clocks. `source_wall_s`: what its clock says now; else ours counts."""
    left_s = max(0.0, then_wall_s - (now.wall_s if source_wall_s is None else source_wall_s))
    return deadline_in(left_s, now)


def deadline_in(left_s: float, now: Moment) -> Moment:
    return Moment(now.monotonic_s + left_s, now.wall_s + left_s)


class Source(Protocol):
    """Asked by the watcher's thread alone."""

    @property
    def name(self) -> str: ...

    @property
    def interval_s(self) -> float:
        """How long to wait between two questions."""
        ...

    @property
    def cloud(self) -> bool:
        """Whether this is a provider's metadata service: a machine has one at most."""
        ...

    def probe(self) -> bool:
        """Whether this source exists here and can ever give a notice. SourceSilentError: perhaps."""
        ...

    def poll(self, now: Moment) -> Notice | None:
        """The notice that holds now. SourceError when it could not be asked."""
        ...
