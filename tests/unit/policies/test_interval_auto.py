"""`every: auto` and `max_overhead`: Young's and Daly's interval, what it rests on, and what it says of itself."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orch_policies.interval import Every, pace
from orch_policies.young_daly import (
    DRAIN_MARGIN,
    INTERVAL_S_MAX,
    INTERVAL_S_MIN,
    PRIOR_S,
    UNMEASURED_S,
    Cost,
    Seen,
    choose,
    failure_every_s,
    optimum_s,
    span,
)

HOUR, MINUTE = 3600.0, 60.0
NOTHING = Seen()
AUTO = Every(seconds=None, auto=True)


@pytest.mark.parametrize(("hours", "minutes"), [(24, 117), (6, 57), (0.25, 9.1)])
def test_the_optimum_is_that_of_dalys_paper(hours, minutes):
    """Its figures 3, 4 and 5: a dump takes 5 minutes."""
    assert optimum_s(5 * MINUTE, hours * HOUR) == pytest.approx(minutes * MINUTE, rel=0.01)


def test_where_failures_are_rare_it_is_youngs():
    assert optimum_s(0.2, 24 * HOUR) == pytest.approx(math.sqrt(2 * 0.2 * 24 * HOUR), rel=0.01)


def test_where_a_save_takes_longer_than_failures_let_it_waits_for_one():
    assert optimum_s(100, 40) == 40


def lost_share(interval_s, cost_s, between_failures_s, seed):
    """A simulated run's time beyond the work it was for: saves, and work done again. Exponential failures."""
    rng = random.Random(seed)
    work_s, clock_s, done_s = 40_000.0, 0.0, 0.0
    fails_s = rng.expovariate(1 / between_failures_s)
    while done_s < work_s:
        end_s = clock_s + interval_s + cost_s
        if fails_s < end_s:
            clock_s, fails_s = fails_s, fails_s + rng.expovariate(1 / between_failures_s)
            continue
        clock_s, done_s = end_s, done_s + interval_s
    return clock_s / work_s - 1


@pytest.mark.parametrize(("cost_s", "between_s"), [(1.0, 600.0), (5.0, 1800.0), (20.0, 900.0)])
def test_no_other_interval_loses_less(cost_s, between_s):
    def mean(interval_s):
        return sum(lost_share(interval_s, cost_s, between_s, seed) for seed in range(40)) / 40

    best = mean(optimum_s(cost_s, between_s))
    for factor in (0.25, 0.4, 2.5, 4):
        assert best < mean(optimum_s(cost_s, between_s) * factor), f"{factor} times it"


# how often it fails


def test_with_nothing_seen_a_day_passes_between_failures():
    assert failure_every_s(NOTHING, NOTHING) == PRIOR_S == 24 * HOUR


def test_what_other_jobs_have_shown_is_the_start_for_a_new_one():
    flaky, calm = Seen(49, 76 * HOUR), Seen(0, 976 * HOUR)
    assert failure_every_s(NOTHING, flaky) == pytest.approx(2 * HOUR)
    assert failure_every_s(NOTHING, calm) == pytest.approx(1000 * HOUR)


def test_in_the_end_the_jobs_own_failures_count_alone():
    assert failure_every_s(Seen(20_000, 40_000 * HOUR), Seen(0, 976 * HOUR)) == pytest.approx(
        2 * HOUR, rel=0.05
    )


seen = st.builds(Seen, st.integers(0, 10_000), st.floats(0, 1e9))
costs = st.builds(Cost, st.floats(0, 1e4), st.none() | st.floats(0, 1e5))
caps = st.none() | st.floats(0.0001, 0.5)


@given(seen, seen)
def test_one_failure_more_never_lengthens_it_and_time_without_one_never_shortens_it(job, others):
    now_s = failure_every_s(job, others)
    assert 0 < now_s < math.inf
    assert failure_every_s(Seen(job.failures + 1, job.running_s), others) <= now_s
    assert failure_every_s(job, Seen(others.failures + 1, others.running_s)) <= now_s
    assert failure_every_s(Seen(job.failures, job.running_s + 60), others) >= now_s


def test_a_clock_that_went_back_is_no_failure_rate():
    assert failure_every_s(Seen(0, -1e9), Seen(0, -1e9)) == PRIOR_S


# the interval


@given(costs, seen, seen, caps)
def test_the_interval_lies_within_its_limits(cost, job, others, cap):
    chosen = choose(cost, job, others, cap)
    drain_s = (cost.durable_s or 0) * DRAIN_MARGIN
    assert chosen.seconds >= max(INTERVAL_S_MIN, drain_s)
    if cap is not None:
        assert cost.blocked_s <= cap * (cost.blocked_s + chosen.seconds) * (1 + 1e-9)
    capped_s = 0 if cap is None else cost.blocked_s * (1 / cap - 1)
    assert chosen.seconds <= max(INTERVAL_S_MAX, drain_s, capped_s)


def test_the_sentence_of_auto():
    found = pace(AUTO, Cost(0.21, 3.1), Seen(2, 5 * HOUR), Seen(10, 12 * HOUR))
    assert found.seconds == pytest.approx(64.4, abs=0.1)
    assert found.sentence == "every 64 s (auto: a save blocks 0.21 s, lasts 3.1 s, a failure every 2.8 h)"


def test_auto_says_what_it_assumes_and_what_bounds_it():
    def sentence(cost, job=NOTHING, **more):
        return pace(Every(seconds=None, auto=True, **more), cost, job).sentence

    assert pace(AUTO, None).seconds == UNMEASURED_S
    assert sentence(None) == (
        "every 60 s (auto: no save has been measured yet, a failure every 24 h (assumed: none was seen yet))"
    )
    assert sentence(Cost(0.0001)).startswith("every 10 s (auto: a save blocks 0.0001 s, a failure every 24 h")
    assert sentence(Cost(0.0001)).endswith("; never under 10 s)")
    assert sentence(Cost(0.2, 400.0)).startswith("every 8 min")
    assert sentence(Cost(0.2, 400.0)).endswith("; no faster than a save drains)")
    assert sentence(Cost(1000.0)).endswith("; never over 60 min)")
    capped = sentence(Cost(2.0), Seen(50, HOUR), overhead_max=0.01)
    assert capped.startswith("every 3 min (auto: a save blocks 2 s")
    assert capped.endswith("; stretched for max_overhead 1%)")


def test_overhead_stretches_what_the_job_file_names_and_says_so():
    every = Every(seconds=30, overhead_max=0.01)
    assert pace(every, None).sentence == "every 30 s", "nothing is measured yet"
    assert (pace(every, Cost(0.1)).seconds, pace(every, Cost(0.1)).sentence) == (30, "every 30 s")
    slow = pace(every, Cost(0.5))
    assert slow.seconds == pytest.approx(49.5)
    assert slow.sentence == (
        "every 30 s (stretched: a save blocks 0.5 s, at least 50 s apart for max_overhead 1%)"
    )


def test_overhead_puts_off_what_is_counted_and_nothing_that_must_be():
    found = pace(Every(steps=10, seconds=None, epochs=1, overhead_max=0.01), Cost(0.5))
    assert found.seconds is None
    assert found.sentence == (
        "every 10 steps or 1 epoch (where needed stretched: a save blocks 0.5 s, at least 50 s apart for "
        "max_overhead 1%)"
    )
    for reason in ("steps", "epochs"):
        assert not found.admits(reason, 49)
        assert found.admits(reason, 50)
    for reason in ("first", "last", "stop", "demand", "asked"):
        assert found.admits(reason, 0)


@pytest.mark.parametrize(
    ("every", "sentence"),
    [
        (Every(), "every 10 min"),
        (Every(steps=500, seconds=90, epochs=2), "every 500 steps or 90 s or 2 epochs"),
        (Every(seconds=None), "at the first and the last step"),
    ],
)
def test_the_sentence_of_what_the_job_file_names(every, sentence):
    assert pace(every, Cost(0.2, 3)).sentence == sentence
    assert pace(every, Cost(0.2, 3)).admits("steps", 0)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.0042, "0.0042 s"),
        (0.214, "0.21 s"),
        (3.14, "3.1 s"),
        (84.4, "84 s"),
        (600, "10 min"),
        (2.34 * HOUR, "2.3 h"),
        (72 * HOUR, "3 d"),
        (1234.4 * 24 * HOUR, "1234 d"),
    ],
)
def test_lengths_of_time_in_few_characters(seconds, words):
    assert span(seconds) == words
