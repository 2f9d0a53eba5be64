"""What a gang decides: whose failure it was, which state all ranks can begin with, which step all can still save."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from statistics import median
from typing import NamedTuple, TypeVar

from orch_policies.classification import Failure

LEAD_S = 0.25
"""How long an agreement about a step takes at most, as a rule: so far ahead is the step that is named first."""
LEAD_STEPS_MAX = 100_000
LEAD_UNKNOWN = 2
"""Steps ahead where nobody knows yet how long one takes."""
STRAGGLER_FACTOR = 1.5
"""A rank whose steps take so many times as long as the gang's median is named in status."""
STRAGGLER_STEP_S_MIN = 0.002
"""Shorter steps are not compared: there the noise of the machine is larger than what a rank could be slow by."""

_LOST_A_PEER = re.compile(
    r"Connection closed by peer|Connection reset by peer|Broken pipe|Connection refused|Socket Timeout|recvValue"
    r"|DistBackendError|DistNetworkError|DistStoreError|NCCL|ncclRemoteError|Gloo|ProcessGroup|TCPStore"
)

P = TypeVar("P")


class Ended(NamedTuple):
    """One rank's process that ended by itself, or was judged to hang."""

    rank: int
    at_us: int
    failure: Failure


def root_cause(ends: Sequence[Ended]) -> Ended:
    """The end that explains the others. When one rank dies, the others fail within milliseconds because they have lost
    it, and which of these ends is seen first is chance. So: what was killed from outside, or is stopped, before what
    ended itself; an error of its own before one that only says that a peer is gone; then the earliest.
    """
    return min(ends, key=_blame)


def _blame(end: Ended) -> tuple[int, int, int]:
    failure = end.failure
    if failure.kind == "hang":
        weight = 0 if "stopped by a signal" in failure.message else 2
    elif failure.signal is not None or failure.oom or failure.kind in {"fatal", "bad_numbers"}:
        weight = 0
    else:
        weight = 3 if lost_a_peer(failure) else 1
    return weight, end.at_us, end.rank


def lost_a_peer(failure: Failure) -> bool:
    """Whether it ended itself because another rank was gone: then that one's end is the one to explain."""
    own = failure.kind == "process_exit" and failure.signal is None
    return own and (failure.cause == "communication" or bool(_LOST_A_PEER.search(failure.error)))


def candidates(
    held: Collection[Collection[P]],
    stored: Sequence[P],
    *,
    step_of: Callable[[P], int],
    admits: Callable[[P], bool],
) -> list[P]:
    """What the gang can begin with, newest step first, at equal step what every rank has in its memory.

    `held`: of each rank, what its machine's memory holds. `stored`: restore points in storage, which every rank can
    read: one that has such a point in memory takes it from there. `admits`: whether it lies on the chain.
    """
    sets = [set(each) for each in held]
    common = {point for point in set.intersection(*sets) if admits(point)} if sets else set()
    found = sorted(common, key=step_of, reverse=True)
    for point in stored:
        if point not in common:
            found.append(point)
    return sorted(found, key=lambda point: (step_of(point), point in common), reverse=True)


def lead_steps(step_s: float | None, doublings: int) -> int:
    """How many steps ahead of the furthest rank a step is named that nobody has reached when everybody knows of it."""
    steps = LEAD_UNKNOWN if not step_s else max(1, math.ceil(LEAD_S / step_s))
    return min(LEAD_STEPS_MAX, steps << min(doublings, 16))


def stragglers(step_s: Mapping[int, float]) -> dict[int, float]:
    """Ranks that are slower than the gang by STRAGGLER_FACTOR: rank → times the gang's median. `step_s` of each rank:
    the time it works for one step, without what it waits for others.
    """
    if len(step_s) < 2:
        return {}
    found = {}
    for rank, own_s in step_s.items():
        middle_s = median(other_s for other, other_s in step_s.items() if other != rank)
        if own_s >= STRAGGLER_STEP_S_MIN and own_s > STRAGGLER_FACTOR * middle_s > 0:
            found[rank] = own_s / middle_s
    return found
