from __future__ import annotations

import math
import random

from hypothesis import given
from hypothesis import strategies as st

from orch_policies.retention import HOUR_US, Best, Checkpoint, Rules, keep


def made(step, hours=0.0, generation=(1, 1), verified=True, **metrics):
    return Checkpoint(generation, step, int(hours * HOUR_US), verified, tuple(metrics.items()))


def steps(kept):
    return [c.step for c in kept]


def test_the_newest_five_by_step_whatever_the_clock_says():
    checkpoints = [made(step, hours=100 - step) for step in range(1, 9)]
    random.Random(1).shuffle(checkpoints)
    kept = keep(checkpoints, Rules(last=5))
    assert steps(kept) == [8, 7, 6, 5, 4]
    assert kept[made(8, hours=92)] == "the newest verified"
    assert kept[made(4, hours=96)] == "one of the newest 5"


def test_the_newest_verified_is_kept_whatever_the_rules_say():
    checkpoints = [made(1), made(2), made(3, verified=False), made(4, verified=False)]
    assert steps(keep(checkpoints, Rules(last=1))) == [4, 2]
    assert steps(keep(checkpoints, Rules(last=0))) == [2]


def test_at_equal_step_the_newer_generation_is_the_newer():
    old, new = made(5, generation=(1, 9)), made(5, generation=(2, 0))
    assert list(keep([old, new], Rules(last=1))) == [new]


def test_every_hours_keeps_the_first_of_each_stretch_and_stays_with_its_choice():
    checkpoints = [made(n, hours=n / 4) for n in range(1, 13)]
    rules = Rules(last=1, every_hours=1)
    kept = keep(checkpoints, rules)
    assert steps(kept) == [12, 8, 4, 1]
    assert keep(kept, rules) == kept


def test_the_best_by_a_metric_never_nan_and_the_newer_of_equals():
    checkpoints = [made(1, loss=0.2), made(2, loss=0.1), made(3, loss=math.nan), made(4, loss=0.1), made(5)]
    kept = keep(checkpoints, Rules(last=1, best=Best("loss", "min", 1)))
    assert steps(kept) == [5, 4]
    kept = keep(checkpoints, Rules(last=1, best=Best("loss", "max", 2)))
    assert steps(kept) == [5, 4, 1]


def test_nothing_to_keep():
    assert keep([], Rules()) == {}


checkpoints = st.lists(
    st.builds(
        made,
        step=st.integers(1, 30),
        hours=st.floats(0, 50),
        generation=st.tuples(st.integers(1, 3), st.integers(0, 3)),
        verified=st.booleans(),
    ),
    unique=True,
)


@given(checkpoints, st.integers(0, 6), st.one_of(st.none(), st.floats(0.1, 9)))
def test_keeping_twice_keeps_the_same_and_each_rule_gets_its_due(items, last, hours):
    rules = Rules(last=last, every_hours=hours)
    kept = keep(items, rules)
    assert set(kept) <= set(items)
    assert len(kept) >= min(last, len(items))
    assert keep(kept, rules) == kept
    if any(c.verified for c in items):
        assert any(c.verified for c in kept)
