"""What holds for any checkpoints and any rules."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from orch_policies.retention import HOUR_US, Best, Checkpoint, Rules, keep

NOW_US = 60 * HOUR_US
METRIC = st.sampled_from([(), (("loss", 0.5),), (("loss", 0.1),), (("loss", math.nan),), (("acc", 0.5),)])


@st.composite
def histories(draw, clock_goes_back=True):
    """Checkpoints as a job writes them, oldest first: steps rise; the clock usually does."""
    hours, step, found = 10.0, 0, []
    for _ in range(draw(st.integers(0, 25))):
        step += draw(st.integers(1, 40))
        hours += draw(st.floats(-20 if clock_goes_back and draw(st.integers(0, 9)) == 0 else 0, 1.5))
        found.append(
            Checkpoint((1, 1), step, int(hours * HOUR_US), draw(st.integers(0, 9)) > 0, draw(METRIC))
        )
    return found


RULES = st.builds(
    Rules,
    last=st.integers(0, 6),
    every_hours=st.none() | st.floats(0.1, 9),
    every_steps=st.none() | st.integers(1, 100),
    best=st.none() | st.builds(Best, st.just("loss"), st.sampled_from(["min", "max"]), st.integers(1, 4)),
    min_age_s=st.none() | st.floats(0, 1e5),
)
PINNED = st.sets(st.tuples(st.just((1, 1)), st.integers(1, 100)), max_size=5)


def kept_by(found, rules, pinned=frozenset()):
    return set(keep(found, rules, pinned=pinned, now_us=NOW_US))


def alone(rules):
    """Each rule by itself."""
    none = Rules(last=0)
    yield replace(none, last=rules.last)
    for name in ("every_hours", "every_steps", "best", "min_age_s"):
        yield replace(none, **{name: getattr(rules, name)})


@given(histories(), RULES, PINNED)
def test_kept_is_what_any_rule_alone_asks_for_so_their_order_cannot_matter(found, rules, pinned):
    single = [kept_by(found, rule) for rule in alone(rules)]
    wanted = {c for c in found if c.place in pinned}.union(*single)
    assert kept_by(found, rules, pinned) == wanted


@given(histories(), RULES, st.randoms())
def test_the_order_in_which_they_are_listed_does_not_matter(found, rules, random):
    shuffled = random.sample(found, len(found))
    assert list(keep(shuffled, rules, now_us=NOW_US).items()) == list(
        keep(found, rules, now_us=NOW_US).items()
    )


@given(histories(), RULES, PINNED)
def test_keeping_twice_keeps_the_same(found, rules, pinned):
    once = kept_by(found, rules, pinned)
    assert kept_by(once, rules, pinned) == once


@given(histories(), RULES, RULES, PINNED)
def test_a_rule_more_never_deletes_more(found, rules, more, pinned):
    names = [n for n in ("every_hours", "every_steps", "best", "min_age_s") if getattr(rules, n) is None]
    added = replace(rules, **{name: getattr(more, name) for name in names})
    assert kept_by(found, rules) <= kept_by(found, added) <= kept_by(found, added, pinned)
    assert kept_by(found, rules) <= kept_by(found, replace(rules, last=rules.last + 1))


@given(histories(), RULES, PINNED)
def test_the_newest_verified_and_the_last_are_never_deleted(found, rules, pinned):
    kept = kept_by(found, rules, pinned)
    verified = [c for c in found if c.verified]
    assert set(verified[-1:]) <= kept
    assert set(found[len(found) - min(rules.last, len(found)) :]) <= kept
    assert {c for c in found if c.place in pinned} <= kept


@given(histories(), RULES, PINNED)
def test_deleting_after_every_save_keeps_what_one_look_at_the_end_would(found, rules, pinned):
    """Nothing that a rule will want later was deleted earlier. (A minimum age only puts deleting off.)"""
    rules = replace(rules, min_age_s=None)
    there = []
    for one in found:
        there = list(keep([*there, one], rules, pinned=pinned))
    assert set(there) == kept_by(found, rules, pinned)


@given(histories(clock_goes_back=False), st.integers(1, 6), st.floats(0.1, 9))
def test_hours_beside_the_last_are_as_tensorflow_keeps_them(found, last, hours):
    """CheckpointManager: what leaves the newest `max_to_keep` is preserved if it is at least so much younger than
    the one preserved before. Its count begins when the manager is made, ours with the first checkpoint.
    """
    active, preserved = deque(), []
    for one in found:
        active.append(one)
        if len(active) > last:
            leaving = active.popleft()
            if not preserved or leaving.created_us - preserved[-1].created_us >= hours * HOUR_US:
                preserved.append(leaving)
    kept = kept_by([replace(c, verified=True) for c in found], Rules(last=last, every_hours=hours))
    assert kept == {replace(c, verified=True) for c in (*active, *preserved)}
