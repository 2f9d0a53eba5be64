"""The books: the buckets sum to the job's age, whatever happens, and hold what they say."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orch.model import events as ev
from orch.model.generation import Generation
from orch.model.states import State
from orch_policies.goodput import BUCKETS, Books, bucket_of, goodput, passed, told

S = 1_000_000
G1, G2 = Generation(1, 1), Generation(1, 2)


def kept(*happened):
    """Books after (state, seconds in it, then the event)."""
    books = Books()
    for state, seconds, event in happened:
        books = passed(books, state, round(seconds * S))
        books = told(books, event, state)
    return books


def seconds(books):
    return {name: us / S for name, us in books.us.items() if us}


BEGINNING = (
    (State.QUEUED, 2, ev.GangGranted(attempt=1)),
    (State.STARTING, 1, ev.ProcessStarted(generation=G1, rank=0)),
    (State.RUNNING, 3, ev.Recovered(generation=G1, step=1)),
)


def test_what_comes_before_the_first_step_is_no_work():
    books = kept(*BEGINNING, (State.RUNNING, 10, ev.WorkerEnded(attempt=1, rank=0, outcome="succeeded")))
    assert seconds(books) == {"queued": 2, "starting": 4, "productive": 10}
    assert goodput(books.us) == 10 / 14


def test_a_job_whose_steps_nobody_knows_works_from_its_start_on():
    books = kept(*BEGINNING[:2], (State.RUNNING, 5, ev.WorkerEnded(attempt=1, rank=0, outcome="succeeded")))
    assert seconds(books) == {"queued": 2, "starting": 1, "productive": 5}


def test_what_such_a_job_did_before_it_died_is_lost():
    """It begins from nothing again."""
    books = kept(
        *BEGINNING[:2],
        (State.RUNNING, 5, ev.ProcessExited(generation=G1, rank=0, code=1, detect_s=0.5)),
        (State.RECOVERING, 1, ev.ProcessStarted(generation=G2, rank=0)),
        (State.RUNNING, 6, ev.WorkerEnded(attempt=1, rank=0, outcome="succeeded")),
    )
    assert seconds(books) == {"queued": 2, "starting": 1, "lost": 5, "restarting": 1, "productive": 6}


def test_a_crash_costs_what_was_lost_and_what_it_took_to_go_on():
    books = kept(
        *BEGINNING,
        (State.RUNNING, 10, ev.CheckpointCommitted(generation=G1, step=50, blocked_s=0.5)),
        (State.RUNNING, 4, ev.ProcessExited(generation=G1, rank=0, signal=9, step=70, detect_s=0.25)),
        (State.RECOVERING, 0.5, ev.ProcessStarted(generation=G2, rank=0)),
        (State.RECOVERING, 2, ev.Restored(generation=G2, step=50, source="memory", seconds_s=0.75)),
        (
            State.RECOVERING,
            1,
            ev.Recovered(generation=G2, step=51, recovery_s=3.75, lost_steps=20, lost_s=3.5),
        ),
        (State.RUNNING, 1, ev.Progressed(generation=G2, step=60)),
    )
    assert seconds(books) == {
        "queued": 2,
        "starting": 4,
        "saving": 0.5,
        "detecting": 0.25,
        "restarting": 2.75,
        "restoring": 0.75,
        "lost": 3.5,
        "productive": 10 + 4 + 1 - 0.5 - 0.25 - 3.5,
    }


def test_what_a_controller_that_was_away_did_not_see_is_known_from_the_agent():
    """It saw RUNNING all the time, and hears of the crash and of the recovery at once."""
    exited = ev.ProcessExited(generation=G1, rank=0, signal=9, step=70)
    recovered = ev.Recovered(generation=G2, step=51, recovery_s=3.75, lost_steps=20, lost_s=2)
    books = kept(*BEGINNING, (State.RUNNING, 60, exited), (State.RECOVERING, 0, recovered))
    assert seconds(books) == {
        "queued": 2,
        "starting": 4,
        "restarting": 3.75,
        "lost": 2,
        "productive": 60 - 3.75 - 2,
    }


def test_lost_steps_of_which_nobody_knows_the_time_count_at_the_usual_pace():
    lost = ev.AgentLost(attempt=1, rank=0, evidence="dead", silent_s=1.0)
    books = kept(
        *BEGINNING,
        (State.RUNNING, 99, ev.Progressed(generation=G1, step=100)),
        (State.RUNNING, 1, lost),
        (State.RECOVERING, 3, ev.Recovered(generation=G2, step=91, lost_steps=10)),
    )
    assert seconds(books)["detecting"] == 1
    assert seconds(books)["lost"] == pytest.approx(9.0)


def test_a_start_that_dies_before_its_first_step_is_no_work_where_steps_are_known():
    exited = ev.ProcessExited(generation=G2, rank=0, code=1)
    again = ev.ProcessStarted(generation=G2, rank=0)
    books = kept(*BEGINNING, (State.RUNNING, 1, again), (State.RUNNING, 5, exited))
    assert seconds(books) == {"queued": 2, "starting": 4, "productive": 1, "restarting": 5}


def test_a_preempted_job_waits_in_the_queue_at_nobodys_expense():
    books = kept(
        *BEGINNING,
        (State.RUNNING, 10, ev.WorkerEnded(attempt=1, rank=0, outcome="left")),
        (State.QUEUED, 100, ev.GangGranted(attempt=2)),
    )
    assert seconds(books) == {"queued": 102, "starting": 4, "productive": 10}
    assert goodput(books.us) == 10 / 14


def test_nothing_has_a_goodput_before_it_ran():
    assert goodput({}) is None
    assert goodput({"queued": 5 * S}) is None
    assert goodput({"queued": 5 * S, "starting": S}) is None


def test_every_state_has_a_bucket():
    assert {bucket_of(state) for state in State} <= set(BUCKETS)


def test_a_job_without_books_begins_with_its_states():
    books = Books.of_states({"QUEUED": 2 * S, "RUNNING": 5 * S, "RECOVERING": S})
    assert seconds(books) == {"queued": 2, "productive": 5, "restarting": 1}


amounts = st.one_of(st.none(), st.floats(-1, 1e4, allow_nan=False))
steps = st.integers(0, 100)
events = st.one_of(
    st.builds(ev.ProcessStarted, generation=st.just(G1), rank=st.just(0)),
    st.builds(ev.Restored, generation=st.just(G1), step=steps, source=st.just("memory"), seconds_s=amounts),
    st.builds(
        ev.Recovered, generation=st.just(G1), step=steps, recovery_s=amounts, lost_steps=steps, lost_s=amounts
    ),
    st.builds(ev.Progressed, generation=st.just(G1), step=steps),
    st.builds(ev.CheckpointCommitted, generation=st.just(G1), step=steps, blocked_s=amounts),
    st.builds(ev.ProcessExited, generation=st.just(G1), rank=st.just(0), code=st.just(1), detect_s=amounts),
    st.builds(ev.AgentLost, attempt=st.just(1), rank=st.just(0), evidence=st.just("x"), silent_s=amounts),
    st.builds(ev.GangLost, attempt=st.just(1), evidence=st.just("x")),
    st.builds(ev.WorkerEnded, attempt=st.just(1), rank=st.just(0), outcome=st.sampled_from(ev.OUTCOMES)),
)


@given(st.lists(st.tuples(st.sampled_from(State), st.integers(0, 10_000_000), events), max_size=60))
def test_the_sum_rule_holds_for_any_timeline(happened):
    books, age_us = Books(), 0
    for state, span_us, event in happened:
        age_us += span_us
        books = told(passed(books, state, span_us), event, state)
        books = Books.from_dict(json.loads(json.dumps(books.to_dict())))
        assert sum(books.us.values()) == age_us
        assert min(books.us.values(), default=0) >= 0
        assert 0 <= books.unproven_us <= books.us.get("productive", 0)
        assert set(books.us) <= set(BUCKETS)
    share = goodput(books.us)
    assert share is None or 0 <= share <= 1
