"""What may change when a job is resumed, its versions of code, the branch in storage, and the lifecycle's rules."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from orch.control import resuming
from orch.control.jobrecord import (
    end_path,
    end_record,
    job_record,
    last_attempt,
    read_job,
    resume_path,
    resume_record,
)
from orch.control.lifecycle import InvalidTransition, advance, begin
from orch.control.lifecycle_invariants import validate
from orch.control.service import CodeInfo, Resumption
from orch.model import events as ev
from orch.model.commands import RecordResume, RemoveGang, StartAgents, StopAgents
from orch.model.errors import WrongUse
from orch.model.generation import Generation
from orch.model.jobfile import JobFileError, changed_spec
from orch.model.spec import JobSpec
from orch.model.states import Branch, JobState, State
from orch_workers.checkpoint import Catalog, Checkpointer, open_storage

S = 1_000_000
G11, G21 = Generation(1, 1), Generation(2, 1)


def spec(**keys) -> JobSpec:
    return JobSpec.model_validate({"run": "python train.py", "workdir": "/w", **keys})


@pytest.mark.parametrize(
    ("override", "key", "why"),
    [
        ("name=other", "name", "the job's id is made of it"),
        ("resources.workers=2", "resources.workers", "its checkpoints are those of so many workers"),
        ("checkpoint.storage=/elsewhere", "checkpoint.storage.url", "orch checkpoints cp"),
        ("ship=never", "ship", "settled by `orch submit`"),
        ("secrets=[KEY]", "secrets", "`orch secrets JOB`"),
        ("workdir=/other", "workdir", "--workdir DIR"),
    ],
)
def test_what_may_not_change_is_refused_with_the_reason(override, key, why):
    before = spec(name="digits", checkpoint={"storage": "/s"})
    after = changed_spec(before.model_dump(mode="json"), [override], {})
    with pytest.raises(WrongUse, match=f"--set {key}: it cannot change") as caught:
        resuming.changed_keys(before, after)
    assert why in caught.value.message


def test_what_may_change_is_named_without_its_value():
    before = spec(env={"TOKEN": "private"}, priority=1)
    overrides = [
        "restart.max_failures=9",
        "checkpoint.every.steps=50",
        "resources.memory=2GiB",
        "run=python b.py",
    ]
    after = changed_spec(before.model_dump(mode="json"), overrides, {"TOKEN": "other"})
    assert resuming.changed_keys(before, after) == [
        "checkpoint.every.steps",
        "env.TOKEN",
        "resources.memory",
        "restart.max_failures",
        "run",
    ]
    assert after.resources.memory_bytes == 2 << 30


def test_a_job_does_not_change_who_keeps_its_state():
    before = spec()
    after = changed_spec(before.model_dump(mode="json"), ["checkpoint.files=[m.pt]"], {})
    with pytest.raises(WrongUse, match="submit a new one"):
        resuming.changed_keys(before, after)


def test_a_wrong_value_is_told_with_its_option():
    with pytest.raises(JobFileError, match=r"--set restart\.max_failures.*-3"):
        changed_spec(spec().model_dump(mode="json"), ["restart.max_failures=-3"], {})


def test_new_code_stands_beside_the_old_and_the_same_code_is_no_new_version():
    first = {"digest": "a" * 64, "size_bytes": 1, "git_commit": None, "git_dirty": None}
    second = resuming.next_code(first, CodeInfo(digest="b" * 64, git_commit="c" * 40, git_dirty=True), 3)
    assert second is not None
    assert (second["version"], second["attempt"]) == (2, 3)
    assert [(one["version"], one["attempt"], one["digest"]) for one in second["earlier"]] == [
        (1, 1, "a" * 64)
    ]
    assert resuming.code_sentence(second) == "code version 2 of commit cccccccccccc, with changes"
    assert resuming.next_code(second, CodeInfo(digest="b" * 64), 4) is None
    third = resuming.next_code(second, CodeInfo(digest="a" * 64), 4)
    assert third is not None
    assert [one["version"] for one in third["earlier"]] == [1, 2]


def test_secrets_that_were_lost_are_needed_and_the_others_stay():
    job = spec(secrets=["KEY", "LOST"])
    assert resuming.lost_secrets("j-1", job, {"KEY": b"x"}, {"KEY": "new", "LOST": "v"}) == {"LOST": "v"}
    with pytest.raises(WrongUse, match=r"LOST.*orch secrets j-1"):
        resuming.lost_secrets("j-1", job, {"KEY": b"x"}, {})
    with pytest.raises(WrongUse, match="OTHER was sent"):
        resuming.lost_secrets("j-1", job, {"KEY": b"x", "LOST": b"x"}, {"OTHER": "v"})


# the branch in storage


@pytest.fixture
def catalog(tmp_path) -> Catalog:
    """Steps 1 to 4 of generation 1.1."""
    with Checkpointer(str(tmp_path / "job-1"), keep=9) as checkpoints:
        for step in range(1, 5):
            checkpoints.save(step, {"weights": np.full(3, float(step))})
    return Catalog(open_storage(str(tmp_path), {}, {}), "job-1")


def test_a_branch_leaves_behind_what_lies_past_it_and_can_be_written_twice(catalog):
    branch = Branch(attempt=2, generation=G11, step=2)
    resuming.ensure_branch(catalog, branch)
    resuming.ensure_branch(catalog, branch)
    assert catalog.newest_generation() == (2, 0)
    assert [point.step for point in catalog.restore_points()] == [2, 1]
    assert [point.step for point in catalog.committed()] == [4, 3, 2, 1], "kept until retention"
    catalog.begin(catalog.chain_of((2, 0)).fork((2, 1), (1, 1), 2))
    resuming.ensure_branch(catalog, branch)
    assert catalog.newest_generation() == (2, 1)


def test_a_branch_may_begin_where_an_earlier_one_left_something_behind(catalog):
    resuming.ensure_branch(catalog, Branch(attempt=2, generation=G11, step=2))
    resuming.ensure_branch(catalog, Branch(attempt=3, generation=G11, step=4))
    assert [point.step for point in catalog.restore_points()] == [4, 3, 2, 1]


def test_a_branch_from_a_checkpoint_that_is_gone_is_refused(catalog):
    point = next(point for point in catalog.committed() if point.step == 3)
    catalog.remove(point)
    with pytest.raises(resuming.BranchGoneError, match="step 3 that it was to go on from is gone"):
        resuming.ensure_branch(catalog, Branch(attempt=2, generation=G11, step=3))
    assert catalog.newest_generation() == (1, 1)


def test_a_step_in_quarantine_is_no_place_to_go_on_from(catalog):
    point = next(point for point in catalog.committed() if point.step == 3)
    catalog.quarantine(point, "a flipped byte")
    with pytest.raises(WrongUse, match="in quarantine: a flipped byte"):
        resuming.event_of(spec(), spec(), [], Resumption(at=3), None, catalog)


def test_a_job_is_read_back_from_storage_as_it_was_resumed_last(catalog):
    storage, old, new = catalog.storage, spec(), spec(env={"LR": "2"})
    code = {"digest": "b" * 64, "size_bytes": 1, "version": 2, "attempt": 2, "earlier": []}
    storage.create(
        "job-1/job.json", job_record("job-1", old.model_dump(mode="json"), None, seed=5, unprotected=False)
    )
    storage.create("job-1/ended/000001.json", json.dumps({
        "version": 1, "job": "job-1", "attempt": 1, "state": "FAILED", "reason": "x", "exit_code": 1, "ended_us": 5,
    }).encode())  # fmt: skip
    assert read_job(storage, "job-1").end["state"] == "FAILED"
    state = JobState(job="job-1", state=State.QUEUED, seed=5)
    for number, found in ((1, old), (2, new)):
        record = resume_record("job-1", found.model_dump(mode="json"), code, state, attempt=2, number=number)
        storage.create(resume_path("job-1", 2, number), record)
    stored = read_job(storage, "job-1")
    assert stored.end is None, "it goes on"
    assert (stored.attempt, stored.spec["env"], stored.code["version"]) == (2, {"LR": "2"}, 2)


# the lifecycle


def told(job, *events):
    for event in events:
        job, commands = advance(job, event, job.seen_us + S)
        validate(job)
    return job, commands


def running() -> JobState:
    job, _ = begin(ev.Submitted(job="j-1", workers=2, budgets={"max_preemptions": 0}), S)
    events = [ev.TurnCame(), ev.GangGranted(attempt=1)]
    events += [ev.AgentUp(attempt=1, rank=rank) for rank in (0, 1)]
    events += [ev.ProcessStarted(generation=G11, rank=rank) for rank in (0, 1)]
    return told(job, *events, ev.Recovered(generation=G11, step=9))[0]


AT_5 = ev.ResumeRequested(at_step=5, at_generation=G11, changed=("run",))


def test_one_that_runs_leaves_and_pays_nothing_whatever_its_ranks_end_with():
    job, (stop, record) = told(running(), AT_5)
    assert isinstance(stop, StopAgents)
    assert record == RecordResume(attempt=2, number=1)
    assert stop.notice == "resumed on request at step 5, changed: run"
    job, _ = told(job, ev.WorkerEnded(attempt=1, rank=0, outcome="succeeded", exit_code=0))
    assert job.state is State.RUNNING
    job, (remove,) = told(job, ev.AgentLost(attempt=1, rank=1, evidence="killed", node_lost=True))
    assert remove == RemoveGang(attempt=1)
    assert (job.state, job.reason) == (State.QUEUED, "resumed on request at step 5, changed: run")
    assert job.charges == {}, "max_preemptions is 0, and it goes on all the same"
    job, (start,) = told(job, ev.GangRemoved(attempt=1), ev.TurnCame(), ev.GangGranted(attempt=2))
    assert isinstance(start, StartAgents)
    assert (start.resumed, start.branch) == (2, Branch(attempt=2, generation=G11, step=5))
    assert start.policy["history"]["highest_step"] == 5, "what was done past it is not lost work"


def test_one_that_does_not_leave_in_time_is_ended_and_goes_on():
    job, _ = told(running(), AT_5, ev.StopOverdue(attempt=1))
    assert job.state is State.QUEUED
    assert job.charges == {}


def test_a_cancel_counts_more_than_a_resume_that_is_under_way():
    job, _ = told(running(), AT_5, ev.CancelRequested(now=True), ev.Closed(attempt=1))
    assert job.state is State.CANCELLED
    assert not job.resuming


def test_one_that_is_ending_cannot_be_resumed():
    job, _ = told(running(), ev.CancelRequested())
    with pytest.raises(InvalidTransition):
        advance(job, AT_5, job.seen_us)
    with pytest.raises(WrongUse, match=r"j-1 is being ended .*orch wait j-1"):
        resuming.refuse_unless_possible("j-1", job, Resumption(at=5))


def test_charges_of_the_attempt_before_do_not_burden_the_new_budgets():
    job, _ = told(running(), AT_5)
    restart = ev.RestartDecided(generation=Generation(1, 2), reason="crash", charge_to="failures", step=9)
    job, _ = told(job, restart)
    assert not job.charges


def test_the_branch_is_forgotten_once_something_was_committed_on_it():
    job, _ = told(running(), AT_5, ev.StopOverdue(attempt=1), ev.GangRemoved(attempt=1), ev.TurnCame())
    job, _ = told(job, ev.GangGranted(attempt=2), *(ev.AgentUp(attempt=2, rank=rank) for rank in (0, 1)))
    late, _ = told(job, ev.CheckpointCommitted(generation=G11, step=9))
    assert (late.branch, late.checkpoint_step) == (job.branch, 5)
    job, _ = told(
        job, ev.ProcessStarted(generation=G21, rank=0), ev.CheckpointCommitted(generation=G21, step=6)
    )
    assert job.branch is None


def test_a_second_resume_before_the_branch_begins_keeps_it():
    over = replace(running(), state=State.FAILED, agents={}, gang=None, gang_granted=False, ended_us=S)
    job, _ = told(over, AT_5, ev.ResumeRequested(changed=("env.A",)))
    assert job.branch == Branch(attempt=2, generation=G11, step=5)
    assert job.history["committed_step"] == 5


def failed() -> JobState:
    return replace(running(), state=State.FAILED, agents={}, gang=None, gang_granted=False, ended_us=S)


def test_of_two_branches_asked_for_before_either_begins_the_second_counts(catalog):
    job, _ = told(failed(), AT_5)
    first = replace(job.branch, step=4)
    resuming.ensure_branch(catalog, first)
    job, (record,) = told(job, ev.ResumeRequested(at_step=2, at_generation=G11))
    assert record == RecordResume(attempt=3, number=2)
    resuming.ensure_branch(catalog, job.branch)
    assert [point.step for point in catalog.restore_points()] == [2, 1]
    job, (start,) = told(job, ev.TurnCame(), ev.GangGranted(attempt=3))
    assert (start.attempt, start.resumed, start.branch.attempt) == (3, 3, 3), (
        "its agents are above its branch"
    )


def test_a_branch_that_cannot_begin_does_not_block_the_next_resume(catalog):
    catalog.remove(next(point for point in catalog.committed() if point.step == 3))
    job, _ = told(failed(), ev.ResumeRequested(at_step=3, at_generation=G11))
    with pytest.raises(resuming.BranchGoneError) as caught:
        resuming.ensure_branch(catalog, job.branch)
    job, _ = told(job, ev.BlockedBecause(reason=str(caught.value), branch=caught.value.branch))
    assert job.state is State.BLOCKED
    job, _ = told(job, ev.ResumeRequested())
    assert (job.state, job.branch) == (State.QUEUED, None)


def test_an_end_before_the_resumed_attempt_was_made_is_an_end_for_recovery(catalog):
    """Else `orch recover` would run a job again that was cancelled."""
    storage = catalog.storage
    storage.create(
        "job-1/job.json", job_record("job-1", spec().model_dump(mode="json"), None, seed=5, unprotected=False)
    )
    job = failed()
    storage.create(end_path("job-1", last_attempt(job)), end_record(replace(job, job="job-1")))
    for number, end in ((1, True), (2, True), (3, False)):
        job, (*_, record) = told(job, ev.ResumeRequested())
        again = resume_record("job-1", {}, None, job, attempt=record.attempt, number=number)
        storage.create(resume_path("job-1", record.attempt, number), again)
        assert read_job(storage, "job-1").end is None
        if end:
            job, _ = told(job, ev.CancelRequested(), ev.Closed(attempt=job.attempt))
            storage.create(end_path("job-1", last_attempt(job)), end_record(replace(job, job="job-1")))
            assert read_job(storage, "job-1").end["state"] == "CANCELLED"
