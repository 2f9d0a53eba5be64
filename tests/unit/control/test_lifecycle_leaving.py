"""Notices of preemption, and a job that is asked to give up its place."""

from __future__ import annotations

from dataclasses import replace

from orch.control.lifecycle import advance, begin, still_wanted
from orch.control.lifecycle_common import STOP_MARGIN_S, charges
from orch.control.lifecycle_invariants import validate
from orch.control.lifecycle_leaving import CORDON_PAST_S, CORDON_UNKNOWN_S
from orch.model import commands as cmd
from orch.model import events as ev
from orch.model.generation import Generation
from orch.model.states import State

S = 1_000_000
NOTICE = ev.PreemptionNoticed(
    attempt=1, rank=0, source="aws", reason="AWS takes it", deadline_us=100 * S, node_id="ab"
)
LEFT = ev.WorkerEnded(attempt=1, rank=0, outcome="left", reason="AWS takes it", step=5)
LOST = ev.AgentLost(attempt=1, rank=0, evidence="ActorDiedError", step=5)


def told(job, *events):
    """The job after `events`, one a second, and the commands of the last."""
    commands = []
    for event in events:
        job, commands = advance(job, event, job.seen_us + S)
        validate(job)
    return job, commands


def starting():
    job, _ = begin(ev.Submitted(job="digits-x1", budgets={"max_failures": 3}), 0)
    return told(job, ev.TurnCame(), ev.GangGranted(attempt=1))[0]


def running():
    started = ev.ProcessStarted(generation=Generation(1, 1), rank=0)
    return told(starting(), ev.AgentUp(attempt=1, rank=0, node="a"), started)[0]


def test_a_notice_cordons_the_machine_until_its_deadline_is_well_past():
    job, commands = told(running(), NOTICE)
    assert commands == []  # the worker acts by itself
    assert job.cordoned == {"ab": (100 + CORDON_PAST_S) * S}
    assert (job.state, job.reason) == (State.RUNNING, "leaves its place: AWS takes it")


def test_what_is_over_is_no_longer_cordoned_and_no_deadline_is_a_short_one():
    job = replace(running(), cordoned={"old": 1})
    job, _ = told(job, replace(NOTICE, deadline_us=None))
    assert job.cordoned == {"ab": job.seen_us + CORDON_UNKNOWN_S * S}


def test_a_mere_warning_changes_nothing():
    before = running()
    job, commands = told(before, replace(NOTICE, leaves=False))
    assert (job.cordoned, job.reason, job.agents, commands) == ({}, before.reason, before.agents, [])


def test_it_leaves_queues_again_and_is_charged_to_preemptions_alone():
    job, commands = told(running(), NOTICE, LEFT)
    assert job.state is State.QUEUED
    assert commands == [cmd.RemoveGang(attempt=1)]
    assert (charges(job).preemptions, charges(job).failures) == (1, 0)
    assert "AWS takes it" in job.reason
    assert job.cordoned  # outlives the agent that told it


def test_an_agent_that_dies_after_its_notice_was_preempted():
    job, _ = told(running(), NOTICE, LOST)
    assert job.state is State.QUEUED
    assert (charges(job).preemptions, charges(job).failures) == (1, 0)
    unannounced, _ = told(running(), LOST)
    assert (charges(unannounced).preemptions, charges(unannounced).failures) == (0, 1)


def test_a_notice_of_a_worker_that_has_ended_is_late():
    done = ev.WorkerEnded(attempt=1, rank=0, outcome="succeeded")
    job, _ = told(running(), done, NOTICE)
    assert job.cordoned == {}
    assert job.state is State.STOPPING


def test_a_request_stops_the_agents_and_says_why():
    job, commands = told(running(), ev.PreemptRequested(grace_s=10, reason="room is needed"))
    deadline_us = job.seen_us + round((10 + STOP_MARGIN_S) * S)
    assert commands == [
        cmd.StopAgents(attempt=1, grace_s=10, deadline_us=deadline_us, notice="room is needed")
    ]
    assert still_wanted(job, commands[0])
    assert job.cordoned == {}
    job, _ = told(job, LEFT)
    assert (job.state, charges(job).preemptions) == (State.QUEUED, 1)
    assert not still_wanted(job, commands[0])


def test_a_second_request_can_only_bring_the_end_nearer():
    first, _ = told(running(), ev.PreemptRequested(grace_s=60))
    later, _ = told(first, ev.PreemptRequested(grace_s=600))
    sooner, _ = told(first, ev.PreemptRequested(grace_s=1))
    assert later.stop_deadline_us == first.stop_deadline_us
    assert sooner.stop_deadline_us < first.stop_deadline_us


def test_killed_while_it_leaves_it_is_charged_once_and_not_replaced_in_a_place_it_must_leave():
    job, commands = told(running(), ev.PreemptRequested(grace_s=10), LOST)
    assert job.state is State.QUEUED
    assert commands == [cmd.RemoveGang(attempt=1)]
    assert (charges(job).preemptions, charges(job).failures) == (1, 0)


def test_a_request_before_any_agent_answers_gives_the_place_back_at_once():
    job, commands = told(starting(), ev.PreemptRequested(grace_s=10))
    assert job.state is State.QUEUED
    assert commands == [cmd.RemoveGang(attempt=1)]


def test_one_that_does_not_leave_in_time_is_placed_again_all_the_same():
    job, _ = told(running(), ev.PreemptRequested(grace_s=10), ev.StopOverdue(attempt=1))
    assert job.state is State.QUEUED
    assert charges(job).preemptions == 1


def test_a_cancel_goes_before_a_preemption():
    job, _ = told(running(), ev.CancelRequested(), ev.PreemptRequested(grace_s=1), NOTICE, LEFT)
    assert job.state is State.STOPPING
    assert job.ending is not None
    assert job.ending.state is State.CANCELLED
    assert charges(job).preemptions == 0


def test_the_last_one_is_done_in_a_place_that_is_given_up_and_the_leader_is_gone():
    """Seed 1094589 of the simulation: nobody would have said that the job is over, and nobody placed it again."""
    job, _ = begin(ev.Submitted(job="digits-x1", workers=2, budgets={"max_failures": 3}), 0)
    up = [ev.AgentUp(attempt=1, rank=rank, node="a") for rank in (0, 1)]
    started = [ev.ProcessStarted(generation=Generation(1, 1), rank=rank) for rank in (0, 1)]
    job, _ = told(job, ev.TurnCame(), ev.GangGranted(attempt=1), *up, *started)
    job, _ = told(job, ev.PreemptRequested(grace_s=10), LOST)
    assert job.state is State.RUNNING, "the other one has something to save"
    job, commands = told(job, ev.WorkerEnded(attempt=1, rank=1, outcome="succeeded"))
    assert (job.state, commands) == (State.QUEUED, [cmd.RemoveGang(attempt=1)])
    assert (charges(job).preemptions, charges(job).failures) == (1, 0)
