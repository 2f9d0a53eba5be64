"""How often to checkpoint when the job leaves it to orch: the interval that loses the least, from what was measured.

Young (1974), "A first order approximation to the optimum checkpoint interval", CACM 17(9): sqrt(2 cost M).
Daly (2006), "A higher order estimate of the optimum checkpoint interval for restart dumps", Future Generation
Computer Systems 22(3): the same with two more terms, which matter when failures come nearly as often as saves.

The cost is the time that training stands still. How long the writer then needs beside it moves every loss by the
same amount, so it does not move the optimum (Vaidya 1997, "Impact of checkpoint latency on overhead ratio"); it
only bounds the interval from below, since a save must have drained before the next is worth taking.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

INTERVAL_S_MIN = 10.0
"""Each save costs requests and a share of the machine's disk or network, however short it blocks."""
INTERVAL_S_MAX = 3600.0
"""Nobody wants to lose more than this, however rare failures have been."""
UNMEASURED_S = 60.0
"""The interval until a first save has been measured."""
DRAIN_MARGIN = 1.2
"""The interval is at least so many times what a save takes to be durable."""

PRIOR_FAILURES, PRIOR_S = 1.0, 24 * 3600.0
"""What a cluster of which nothing is known yet is taken to have shown: one failure in a day of running."""
CLUSTER_WEIGHT = 1.0
"""What other jobs have shown counts, for a job, like so many failures of its own."""

HOUR_S = 3600.0


@dataclass(frozen=True)
class Seen:
    """So many failures in so much time of running: of one job, or of several together."""

    failures: int = 0
    running_s: float = 0.0


@dataclass(frozen=True)
class Cost:
    """Of one save. `blocked_s`: training stands still. `durable_s`: until it is committed; None: none was yet."""

    blocked_s: float
    durable_s: float | None = None


@dataclass(frozen=True)
class Chosen:
    """`reason` is a phrase for people, without the interval itself."""

    seconds: float
    reason: str


def failure_every_s(job: Seen, others: Seen) -> float:
    """Expected running time from one failure of the job to the next; never infinite, never zero.

    Failures are taken as a Poisson process, whose rate has a gamma prior: then so many failures in so much time
    are simply added to those that the prior stands for. The prior of a job is what the other jobs of the cluster
    have shown, and theirs is PRIOR_FAILURES in PRIOR_S.
    """
    cluster_s = (PRIOR_S + _time(others)) / (PRIOR_FAILURES + others.failures)
    return (CLUSTER_WEIGHT * cluster_s + _time(job)) / (CLUSTER_WEIGHT + job.failures)


def optimum_s(blocked_s: float, between_failures_s: float) -> float:
    """Daly's optimum: time of training from the end of one save to the beginning of the next."""
    if blocked_s >= 2 * between_failures_s:
        return between_failures_s
    part = blocked_s / (2 * between_failures_s)
    young_s = math.sqrt(2 * blocked_s * between_failures_s)
    return young_s * (1 + math.sqrt(part) / 3 + part / 9) - blocked_s


def apart_s(cost: Cost | None, overhead_max: float | None) -> float:
    """How far apart saves must lie so that blocking costs at most the share `overhead_max` of the run time."""
    if cost is None or overhead_max is None:
        return 0.0
    return cost.blocked_s * (1 / overhead_max - 1)


def choose(cost: Cost | None, job: Seen, others: Seen, overhead_max: float | None = None) -> Chosen:
    """The interval for `every: auto`. `overhead_max` is a share, 0.01 for one percent; it may exceed INTERVAL_S_MAX,
    and so may the time that a save needs to drain.
    """
    expected_s = failure_every_s(job, others)
    assumed = "" if job.failures or others.failures else " (assumed: none was seen yet)"
    failing = f"a failure every {span(expected_s)}{assumed}"
    if cost is None:
        return Chosen(UNMEASURED_S, f"auto: no save has been measured yet, {failing}")
    lasts = "" if cost.durable_s is None else f", lasts {span(cost.durable_s)}"
    reason = f"auto: a save blocks {span(cost.blocked_s)}{lasts}, {failing}"
    seconds = optimum_s(cost.blocked_s, expected_s)
    bounds = [
        (INTERVAL_S_MIN, f"never under {span(INTERVAL_S_MIN)}"),
        ((cost.durable_s or 0.0) * DRAIN_MARGIN, "no faster than a save drains"),
        (apart_s(cost, overhead_max), f"stretched for max_overhead {percent(overhead_max)}"),
    ]
    if seconds > INTERVAL_S_MAX:
        seconds, reason = INTERVAL_S_MAX, f"{reason}; never over {span(INTERVAL_S_MAX)}"
    least_s, why = max(bounds, key=lambda bound: bound[0])
    return Chosen(least_s, f"{reason}; {why}") if least_s > seconds else Chosen(seconds, reason)


def span(seconds: float) -> str:
    """A length of time in a few characters: "0.21 s", "84 s", "12 min", "2.3 h", "31 d"."""
    if seconds < 10:
        return f"{seconds:.2g} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 2 * HOUR_S:
        return f"{seconds / 60:.0f} min"
    if seconds < 48 * HOUR_S:
        return f"{seconds / HOUR_S:.2g} h"
    return f"{seconds / 24 / HOUR_S:.0f} d"


def percent(share: float | None) -> str:
    return "none" if share is None else f"{share * 100:g}%"


def _time(seen: Seen) -> float:
    """A clock that went back must not turn time into less than nothing."""
    return max(0.0, seen.running_s)
