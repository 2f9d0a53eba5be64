"""Whose failure it was, what all ranks can begin with, how far ahead a step is named, who is slow."""

from __future__ import annotations

import pytest

from orch_policies.classification import Failure
from orch_policies.gang import (
    LEAD_S,
    LEAD_STEPS_MAX,
    Ended,
    candidates,
    lead_steps,
    lost_a_peer,
    root_cause,
    stragglers,
)

KILLED = Failure("process_exit", signal=9)
OWN = Failure("process_exit", exit_code=1, error="ValueError: bad", cause="exception")
LOST = Failure(
    "process_exit", exit_code=1, error="ConnectionError: Connection closed by peer", cause="communication"
)
RESET = Failure(
    "process_exit", exit_code=1, error="RuntimeError: Connection reset by peer", cause="exception"
)
STOPPED = Failure("hang", message="no progress for 5 s; process 7 is stopped by a signal")
WAITED = Failure("hang", message="no progress for 5 s; its stacks stood still")


@pytest.mark.parametrize(
    ("ends", "rank"),
    [
        ([(0, 10, LOST), (1, 20, KILLED)], 1),
        ([(0, 10, LOST), (1, 20, OWN)], 1),
        ([(0, 10, RESET), (1, 20, OWN)], 1),
        ([(0, 10, OWN), (1, 20, KILLED)], 1),
        ([(0, 20, OWN), (1, 10, OWN)], 1),
        ([(0, 10, LOST), (1, 20, LOST)], 0),
        ([(0, 10, WAITED), (1, 20, STOPPED)], 1),
        ([(1, 10, WAITED), (0, 10, WAITED)], 0),
    ],
)
def test_the_end_that_explains_the_others_is_the_cause(ends, rank):
    assert root_cause([Ended(*end) for end in ends]).rank == rank


def test_an_end_says_by_itself_whether_it_only_lost_a_peer():
    assert [lost_a_peer(one) for one in (LOST, RESET, OWN, KILLED, STOPPED)] == [
        True,
        True,
        False,
        False,
        False,
    ]


def found(held, stored, *, off_chain=()):
    return candidates(held, stored, step_of=lambda step: step, admits=lambda step: step not in off_chain)


def test_memory_counts_where_every_rank_has_the_step():
    assert found([{5, 10}, {5, 10}], []) == [10, 5]
    assert found([{5, 10}, {5}], []) == [5]
    assert found([{10}, {5}], []) == []
    assert found([], [5]) == [5]


def test_the_newest_comes_first_wherever_it_lies():
    assert found([{10}, {10}], [12, 10, 8]) == [12, 10, 8]
    assert found([{10}, {12}], [8, 4]) == [8, 4]


def test_what_lies_off_the_chain_is_nobodys():
    assert found([{10, 20}, {10, 20}], [5], off_chain={20}) == [10, 5]


def test_a_step_is_named_as_far_ahead_as_agreeing_takes():
    assert lead_steps(None, 0) == 2
    assert lead_steps(10.0, 0) == 1
    assert lead_steps(0.001, 0) == round(LEAD_S / 0.001)
    assert lead_steps(0.001, 2) == 4 * round(LEAD_S / 0.001)
    assert lead_steps(1e-9, 50) == LEAD_STEPS_MAX


def test_a_rank_that_is_slower_than_the_others_is_named():
    assert stragglers({0: 0.1, 1: 0.1, 2: 0.25}) == {2: 2.5}
    assert stragglers({0: 0.1, 1: 0.25}) == {1: 2.5}
    assert stragglers({0: 0.1, 1: 0.12}) == {}
    assert stragglers({0: 0.1}) == {}
    assert stragglers({0: 1e-5, 1: 1e-3}) == {}, "too short to tell from noise"
