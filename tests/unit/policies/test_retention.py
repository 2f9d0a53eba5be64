from __future__ import annotations

import math
import random

import pytest

from orch_policies.retention import HOUR_US, Best, Checkpoint, Rules, keep

NONE = Rules(last=0)


def made(step, hours=0.0, generation=(1, 1), verified=True, **metrics):
    return Checkpoint(generation, step, int(hours * HOUR_US), verified, tuple(metrics.items()))


def steps(kept):
    return [c.step for c in kept]


def test_the_newest_five_by_step_whatever_the_clock_says():
    checkpoints = [made(step, hours=100 - step) for step in range(1, 9)]
    random.Random(1).shuffle(checkpoints)
    kept = keep(checkpoints, Rules(last=5))
    assert steps(kept) == [8, 7, 6, 5, 4]
    assert kept[made(8, hours=92)] == "newest verified, last 5"
    assert kept[made(4, hours=96)] == "last 5"


def test_the_newest_verified_is_kept_whatever_the_rules_say():
    checkpoints = [made(1), made(2), made(3, verified=False), made(4, verified=False)]
    assert steps(keep(checkpoints, Rules(last=1))) == [4, 2]
    assert steps(keep(checkpoints, NONE)) == [2]


def test_at_equal_step_the_newer_generation_is_the_newer():
    old, new = made(5, generation=(1, 9)), made(5, generation=(2, 0))
    assert list(keep([old, new], Rules(last=1))) == [new]


def test_every_hours_counts_from_the_one_that_was_kept_and_stays_with_its_choice():
    checkpoints = [made(n, hours=n * 0.4) for n in range(1, 13)]
    rules = Rules(last=1, every_hours=1)
    kept = keep(checkpoints, rules)
    assert steps(kept) == [12, 10, 7, 4, 1], "not the full hours of the clock: three saves lie in each"
    assert kept[checkpoints[3]] == "every 1 h"
    assert keep(kept, rules) == kept


def test_a_clock_that_goes_back_costs_one_checkpoint_more_and_no_long_wait():
    before = [made(n, hours=1000 + n / 2) for n in range(1, 7)]
    after = [made(n, hours=n / 2) for n in range(7, 15)]
    kept = keep([*before, *after], Rules(last=0, every_hours=1))
    assert steps(kept) == [14, 13, 11, 9, 7, 5, 3, 1]


def test_a_clock_that_jumps_ahead_and_back_is_got_over():
    checkpoints = [made(1, 1), made(2, 1.5), made(3, 900), made(4, 2), made(5, 2.5), made(6, 3)]
    assert steps(keep(checkpoints, Rules(last=0, every_hours=1))) == [6, 4, 3, 1]


def test_every_steps_keeps_the_first_at_or_after_each_multiple():
    checkpoints = [made(step) for step in (1, 500, 1000, 1500, 2011, 2500, 2999, 3000)]
    kept = keep(checkpoints, Rules(last=0, every_steps=1000))
    assert steps(kept) == [3000, 2011, 1000, 1]
    assert kept[made(2011)] == "every 1000 steps"


def test_the_best_by_a_metric_and_the_newer_of_equals():
    checkpoints = [made(1, loss=0.2), made(2, loss=0.1), made(3, loss=math.nan), made(4, loss=0.1), made(5)]
    kept = keep(checkpoints, Rules(last=1, best=Best("loss", "min", 1)))
    assert steps(kept) == [5, 4]
    assert kept[checkpoints[3]] == "best 1 by loss (min)"
    assert steps(keep(checkpoints, Rules(last=1, best=Best("loss", "max", 2)))) == [5, 4, 1]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("mode", ["min", "max"])
def test_what_is_no_number_is_never_the_best(value, mode):
    checkpoints = [made(1, loss=7.0), made(2, loss=value), made(3, other=1.0), made(4)]
    kept = keep(checkpoints, Rules(last=1, best=Best("loss", mode, 9)))
    assert steps(kept) == [4, 1]


def test_what_is_pinned_stays_and_counts_against_no_rule():
    checkpoints = [made(step) for step in range(1, 8)]
    kept = keep(checkpoints, Rules(last=2), pinned={((1, 1), 3), ((1, 1), 7), ((9, 9), 4)})
    assert {c.step: reason for c, reason in kept.items()} == {
        7: "newest verified, pinned, last 2",
        6: "last 2",
        3: "pinned",
    }


def test_what_is_too_young_stays():
    checkpoints = [made(n, hours=n) for n in range(1, 6)]
    now_us = 5 * HOUR_US + 1
    kept = keep(checkpoints, Rules(last=1, min_age_s=2 * 3600), now_us=now_us)
    assert steps(kept) == [5, 4]
    assert kept[checkpoints[3]] == "younger than 7200 s"
    assert steps(keep(checkpoints, Rules(last=1, min_age_s=1), now_us=0)) == [5, 4, 3, 2, 1], (
        "the clock has gone back: their age is not known"
    )
    with pytest.raises(ValueError, match="now_us"):
        keep(checkpoints, Rules(min_age_s=1))


def test_nothing_to_keep():
    assert keep([], Rules()) == {}


def test_rules_survive_json():
    rules = Rules(3, 1.5, 100, Best("loss", "max", 2), 60.0)
    assert Rules.from_dict(rules.to_dict()) == rules
    assert Rules.from_dict({"last": 2}) == Rules(last=2)


@pytest.mark.parametrize(
    ("rules", "needed"),
    [
        (Rules(), False),
        (Rules(every_steps=5), False),
        (Rules(every_hours=1), True),
        (Rules(best=Best("x")), True),
        (Rules(min_age_s=1), True),
    ],
)
def test_what_is_known_without_a_manifest(rules, needed):
    assert rules.needs_manifests is needed
