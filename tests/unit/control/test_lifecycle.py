"""The table, what is not in it, and what is too late for it.

Whole lives are in tests/scenarios and tests/simulation.
"""

from __future__ import annotations

import itertools
import pickle
from dataclasses import replace

import pytest

from orch.control.lifecycle import (
    STORY_ENTRIES_MAX,
    TRANSITIONS,
    InvalidTransition,
    advance,
    begin,
    still_wanted,
    story_lines,
)
from orch.control.lifecycle_invariants import validate
from orch.model import commands as cmd
from orch.model import events as ev
from orch.model.generation import Generation
from orch.model.states import ENDED, PLACED, State

S = 1_000_000
G11, G12, G21 = Generation(1, 1), Generation(1, 2), Generation(2, 1)


def submitted(**changes):
    job, commands = begin(ev.Submitted(job="digits-x1", budgets={"max_failures": 3}, **changes), 0)
    assert not commands
    return job


def told(job, *events, every_us=S):
    """The job after `events`, one a second, and the commands of the last."""
    commands = []
    for event in events:
        job, commands = advance(job, event, job.seen_us + every_us)
        validate(job)
    return job, commands


def running(**changes):
    job, _ = told(
        submitted(**changes),
        ev.TurnCame(),
        ev.GangGranted(attempt=1),
        ev.AgentUp(attempt=1, rank=0, node="node-a"),
        ev.ProcessStarted(generation=G11, rank=0),
        ev.Recovered(generation=G11, step=1),
    )
    assert job.state is State.RUNNING
    return job


LOST = ev.AgentLost(attempt=1, rank=0, evidence="ActorDiedError", step=5)
SUCCEEDED = ev.WorkerEnded(attempt=1, rank=0, outcome="succeeded")


def of_every_state():
    """A real job in every state."""
    stopping, _ = told(running(), ev.CancelRequested())
    succeeded, _ = told(running(), SUCCEEDED, ev.Closed(attempt=1))
    failed, _ = told(
        running(), ev.WorkerEnded(attempt=1, rank=0, outcome="failed", reason="bad"), ev.Closed(attempt=1)
    )
    jobs = [
        submitted(),
        told(submitted(), ev.TurnCame(), ev.GangGranted(attempt=1))[0],
        running(),
        told(running(), LOST)[0],
        stopping,
        told(submitted(), ev.BlockedBecause(reason="set its secrets again"))[0],
        succeeded,
        failed,
        told(stopping, ev.CancelRequested(now=True), ev.Closed(attempt=1))[0],
    ]
    assert {job.state for job in jobs} == set(State)
    return jobs


def some_of_every_event():
    return [
        ev.TurnCame(),
        ev.TurnLost(),
        ev.CancelRequested(),
        ev.CancelRequested(now=True),
        ev.ResumeRequested(),
        ev.ResumeRequested(at_step=3, at_generation=G11, budgets={"max_failures": 1}),
        ev.BlockedBecause(reason="x"),
        ev.Unblocked(),
        ev.Adopted(),
        ev.Adopted(found={0: 1}, gang=1),
        ev.Adopted(found={3: 1}, gang=1),
        *(kind(attempt=1) for kind in (ev.GangGranted, ev.GangRemoved, ev.StopOverdue, ev.Closed)),
        ev.GangLost(attempt=1, evidence="gone"),
        ev.AgentUp(attempt=1, rank=0),
        ev.AgentUp(attempt=1, rank=7),
        LOST,
        replace(LOST, node_lost=True),
        ev.PreemptionNoticed(attempt=1, rank=0, source="aws", reason="goes", node_id="ab"),
        ev.PreemptionNoticed(attempt=1, rank=0, source="aws", reason="may go", leaves=False),
        ev.PreemptRequested(grace_s=5),
        *(ev.WorkerEnded(attempt=1, rank=0, outcome=outcome) for outcome in ev.OUTCOMES),
        *(ev.ProcessStarted(generation=g, rank=0) for g in (G11, G12)),
        ev.Restored(generation=G11, step=3, source="storage"),
        ev.WarmStarted(generation=G11, source="other-x1@7", loaded=3, missing=("head.weight",)),
        ev.Recovered(generation=G11, step=4),
        ev.Progressed(generation=G12, step=4),
        ev.ProcessExited(generation=G11, rank=0, signal=9),
        ev.ProcessExited(generation=G11, rank=0, code=0),
        ev.RestartDecided(generation=G12, reason="x", charge_to="failures", step=4),
        ev.CheckpointCommitted(generation=G11, step=4),
    ]


def test_there_is_a_sample_of_every_event():
    assert {type(event) for event in some_of_every_event()} | {ev.Submitted} == set(ev.EVENTS.values())


def test_two_events_in_a_row_never_break_an_invariant():
    """In every state: either a valid job comes out, or InvalidTransition and nothing has changed."""
    refused = set()
    for job in of_every_state():
        for pair in itertools.product(some_of_every_event(), repeat=2):
            now = job
            for event in pair:
                try:
                    now, commands = advance(now, event, now.seen_us + S)
                except InvalidTransition:
                    refused.add((now.attempt, now.state, type(event)))
                    break
                validate(now)
                for command in commands:
                    assert still_wanted(now, command), (command, story_lines(now))
    assert {state for _, state, kind in refused if kind is ev.ResumeRequested} == {State.STOPPING}
    kinds = {kind for attempt, _, kind in refused if attempt > 0}
    assert kinds == {ev.ResumeRequested}, (
        "the samples' attempt exists: all else is taken, or known to be late"
    )


def test_events_told_twice_change_nothing_the_second_time():
    """But for the story and the times. What a person or a new controller says is no fact of that kind."""
    questions = (ev.Adopted, ev.AgentUp, ev.CancelRequested, ev.ResumeRequested, ev.BlockedBecause)
    facts = [event for event in some_of_every_event() if not isinstance(event, questions)]
    for job, event in itertools.product(of_every_state(), facts):
        try:
            once, _ = advance(job, event, job.seen_us)
            twice, commands = advance(once, event, once.seen_us)
        except InvalidTransition:
            continue
        assert replace(twice, story=()) == replace(once, story=()), story_lines(twice)
        assert not commands


def test_an_end_is_only_left_by_a_resume():
    for (state, kind), transition in TRANSITIONS.items():
        if state in ENDED and kind is not ev.ResumeRequested:
            assert transition.to == {state}


def test_only_closed_leads_to_an_end():
    for (state, kind), transition in TRANSITIONS.items():
        if transition.to & ENDED and state not in ENDED:
            assert kind is ev.Closed


def test_an_invalid_transition_tells_the_story():
    job, _ = told(running(), ev.CancelRequested())
    with pytest.raises(InvalidTransition) as caught:
        advance(job, ev.ResumeRequested(), job.seen_us)
    text = str(caught.value)
    assert "job digits-x1 is STOPPING in generation 000001.000001 and cannot take ResumeRequested()" in text
    assert "AgentUp(attempt=1, rank=0, node=node-a)" in text
    assert str(pickle.loads(pickle.dumps(caught.value))) == text


def test_an_attempt_that_was_never_made_is_refused():
    with pytest.raises(InvalidTransition, match="never made"):
        advance(running(), ev.ProcessStarted(generation=G21, rank=0), 10 * S)


def test_the_story_is_bounded_and_progress_does_not_flood_it():
    job = running()
    entries = len(job.story)
    for step in range(2, 50):
        job, _ = told(job, ev.Progressed(generation=G11, step=step))
    assert len(job.story) == entries + 1
    for _ in range(STORY_ENTRIES_MAX):
        job, _ = told(job, ev.TurnCame(), ev.Unblocked())
    assert len(job.story) == STORY_ENTRIES_MAX


def test_times_never_go_back_and_sum_up():
    job, _ = told(running(), ev.Progressed(generation=G11, step=9), every_us=-100 * S)
    assert job.seen_us == 5 * S
    job, _ = told(job, SUCCEEDED, ev.Closed(attempt=1))
    assert job.ended_us == 7 * S
    assert sum(job.spent_us.values()) == 7 * S
    assert job.spent_us == {"QUEUED": 2 * S, "STARTING": 2 * S, "RUNNING": 2 * S, "STOPPING": S}


def test_a_job_waits_for_its_delay_before_it_asks_again():
    job = running()
    for attempt in (1, 2):
        job, _ = told(job, ev.GangLost(attempt=attempt, evidence="the cluster died"))
        assert job.state is State.QUEUED
        if attempt == 1:
            job, _ = told(job, ev.TurnCame(), ev.GangGranted(attempt=2), ev.AgentUp(attempt=2, rank=0))
    assert job.not_before_us is not None
    assert not job.placeable(job.seen_us)
    waiting, commands = advance(job, ev.TurnCame(), job.not_before_us - 1)
    assert not commands
    assert waiting.story[-1].decision == "its delay is not over"
    assert job.placeable(job.not_before_us)
    _, commands = advance(job, ev.TurnCame(), job.not_before_us)
    assert commands == [cmd.RequestGang(attempt=3)]


def test_a_lost_agent_is_replaced_with_what_the_policy_knows():
    job, (start,) = told(running(), LOST)
    assert (job.state, job.attempt, job.gang) == (State.RECOVERING, 2, 1)
    assert isinstance(start, cmd.StartAgents)
    assert start.policy["charges"]["failures"] == 1
    assert start.policy["history"]["highest_step"] == 5
    assert start.policy["budgets"]["max_failures"] == 3


def test_commands_that_came_too_late_are_not_wanted():
    job = running()
    lost, (start,) = told(job, LOST)
    assert still_wanted(lost, start)
    stopping, (stop,) = told(job, ev.CancelRequested())
    assert still_wanted(stopping, stop)
    closing, (close,) = told(stopping, ev.CancelRequested(now=True))
    assert still_wanted(closing, close)
    assert not still_wanted(closing, stop)
    over, _ = told(closing, ev.Closed(attempt=1))
    again, _ = told(over, ev.ResumeRequested(), ev.TurnCame(), ev.GangGranted(attempt=2))
    for command in (start, stop, close, cmd.RequestGang(attempt=1), cmd.RemoveGang(attempt=1)):
        assert not still_wanted(again, command), command
    assert not still_wanted(told(lost, ev.CancelRequested(now=True))[0], start)


def test_a_removal_is_not_repeated_once_it_was_seen():
    job, (remove,) = told(running(), replace(LOST, node_lost=True))
    assert remove == cmd.RemoveGang(attempt=1)
    assert still_wanted(job, remove)
    gone, _ = told(job, ev.GangRemoved(attempt=1))
    assert not still_wanted(gone, remove)


def test_a_new_controller_ends_what_nobody_expects():
    job, commands = told(running(), ev.Adopted(found={0: 1, 3: 1}, gang=1))
    assert commands == [cmd.KillAgents(strays={3: 1})]
    assert job.state is State.RUNNING
    _, commands = told(submitted(), ev.TurnCame(), ev.Adopted(found={}, gang=None))
    assert commands == [cmd.RequestGang(attempt=1)]
    over, _ = told(running(), SUCCEEDED, ev.Closed(attempt=1))
    over, commands = told(over, ev.Adopted(found={0: 1}, gang=1))
    assert commands == [cmd.KillAgents(strays={0: 1}), cmd.RemoveGang(attempt=1)]
    assert all(still_wanted(over, command) for command in commands)


def test_a_cancel_sweeps_what_a_block_had_kept():
    """The close of a block keeps the snapshots; a cancel that overtakes it is over when they are gone."""
    job, (close,) = told(running(), ev.BlockedBecause(reason="its secrets are needed"))
    assert close == cmd.CloseJob(attempt=1, sweep=False)
    job, (close,) = told(job, ev.CancelRequested())
    assert close == cmd.CloseJob(attempt=1, sweep=True)
    job, _ = told(job, ev.Closed(attempt=1, swept=False))
    assert job.state is State.STOPPING
    job, _ = told(job, ev.Closed(attempt=1))
    assert job.state is State.CANCELLED


def test_a_gang_leaves_together_and_is_charged_once():
    job, _ = told(
        submitted(workers=2),
        ev.TurnCame(),
        ev.GangGranted(attempt=1),
        *(ev.AgentUp(attempt=1, rank=rank) for rank in (0, 1)),
        *(ev.ProcessStarted(generation=G11, rank=rank) for rank in (0, 1)),
    )
    job, (stop,) = told(job, ev.WorkerEnded(attempt=1, rank=1, outcome="left", reason="spot"))
    assert isinstance(stop, cmd.StopAgents)
    assert job.state in PLACED
    job, commands = told(job, ev.StopOverdue(attempt=1))
    assert (job.state, commands) == (State.QUEUED, [cmd.RemoveGang(attempt=1)])
    assert job.charges["preemptions"] == 1


def test_a_machine_that_dies_under_a_gang_that_leaves_is_charged_once_and_said_so():
    """Found by the simulation (seed 23159): the charge was right, and called charged already."""
    job, _ = told(
        submitted(workers=2),
        ev.TurnCame(),
        ev.GangGranted(attempt=1),
        *(ev.AgentUp(attempt=1, rank=rank, node="node-a") for rank in (0, 1)),
        *(ev.ProcessStarted(generation=G11, rank=rank) for rank in (0, 1)),
        ev.WorkerEnded(attempt=1, rank=0, outcome="left", reason="spot"),
        *(ev.AgentLost(attempt=1, rank=rank, evidence="dead", node_lost=True) for rank in (0, 1)),
    )
    assert (job.state, job.charges["preemptions"]) == (State.QUEUED, 1)
    assert job.reason == "preempted: node-a took rank 1 along; placing it again, preemptions 1"


def test_a_job_that_knows_steps_recovers_until_the_first_new_one():
    job, _ = told(running(), LOST, ev.AgentUp(attempt=2, rank=0), ev.ProcessStarted(generation=G21, rank=0))
    assert job.state is State.RECOVERING
    restored = ev.Restored(generation=G21, step=5, source="memory")
    job, _ = told(job, restored, ev.Progressed(generation=G21, step=5))
    assert job.state is State.RECOVERING
    job, _ = told(job, ev.Progressed(generation=G21, step=6))
    assert job.state is State.RUNNING


def test_a_removal_whose_answer_was_lost_is_asked_for_again():
    """The controller died between the removal and its GangRemoved: without this the job would wait for ever."""
    job, _ = told(running(), ev.AgentLost(attempt=1, rank=0, evidence="node died", node_lost=True))
    assert (job.state, job.removing) == (State.QUEUED, (1,))
    job, commands = told(job, ev.Adopted(found={}, gang=None))
    assert commands == [cmd.RemoveGang(attempt=1)]
    assert still_wanted(job, commands[0])
    job, commands = told(job, ev.Adopted(found={}, gang=1))
    assert commands == [cmd.RemoveGang(attempt=1)], "asked for once"
    job, _ = told(job, ev.GangRemoved(attempt=1))
    assert job.placeable(job.seen_us)
