from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from orch_policies.queue import Waiting, order


def test_priority_then_age_then_id():
    jobs = [Waiting("b", 0, 5), Waiting("a", 0, 5), Waiting("old", 0, 1), Waiting("urgent", 7, 9)]
    turns = order(jobs)
    assert [t.job_id for t in turns] == ["urgent", "old", "a", "b"]
    assert [t.position for t in turns] == [1, 2, 3, 4]
    assert turns[0].reason == "next: of the highest priority (7) it has waited longest"
    assert turns[3].reason == "behind 1 of higher priority, 2 of the same that came earlier"


def test_nobody_waits():
    assert order([]) == []


waiting = st.builds(Waiting, st.text("abc", min_size=1), st.integers(-2, 2), st.integers(0, 3))


@given(st.lists(waiting, unique_by=lambda w: w.job_id), st.randoms(use_true_random=False))
def test_the_order_does_not_depend_on_the_order_of_arrival(jobs, rng):
    turns = order(jobs)
    shuffled = list(jobs)
    rng.shuffle(shuffled)
    assert order(shuffled) == turns
    assert sorted(t.job_id for t in turns) == sorted(j.job_id for j in jobs)
