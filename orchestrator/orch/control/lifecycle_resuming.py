"""Rules of the lifecycle: a job that is to run again, or anew, because a person says so."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from orch.control.lifecycle_common import (
    STOP_MARGIN_S,
    Step,
    attempt_to_ask_for,
    awaited,
    history,
    requeued,
    us,
    with_agent,
)
from orch.model.commands import RecordResume, StopAgents
from orch.model.states import Branch, State
from orch_policies.restart import History

if TYPE_CHECKING:
    from orch.model.events import ResumeRequested
    from orch.model.states import JobState


def resume(job: JobState, event: ResumeRequested, _now_us: int) -> Step:
    """It is over, blocked, or waits: it queues again, and what was asked for it is asked for anew."""
    following = attempt_to_ask_for(job)
    reason, job = _reason(event), _afresh(job, event, following)
    record = RecordResume(attempt=following, number=job.resumes)
    if job.state is State.QUEUED and job.gang is not None:
        step = requeued(job, reason)  # a gang of other resources may be wanted now
    else:
        job = replace(job, ended_us=None, exit_code=None, traceback=None)
        step = Step(replace(job, state=State.QUEUED, reason=reason, not_before_us=None))
    return Step(step.job, (*step.commands, record), f"{reason}, with fresh budgets")


def resume_placed(job: JobState, event: ResumeRequested, now_us: int) -> Step:
    """It saves, leaves its place, and is placed again; that is charged to nothing."""
    following = attempt_to_ask_for(job)
    reason, job = _reason(event), _afresh(job, event, following)
    record = RecordResume(attempt=following, number=job.resumes)
    if not awaited(job):
        step = requeued(job, reason)
        return Step(step.job, (*step.commands, record), f"{reason}, with fresh budgets")
    for rank in awaited(job):
        job = with_agent(job, rank, notice=reason)
    deadline_us = now_us + us(event.grace_s + STOP_MARGIN_S)
    if job.stop_deadline_us is not None:
        deadline_us = min(deadline_us, job.stop_deadline_us)
    job = replace(job, resuming=reason, stop_deadline_us=deadline_us, reason=f"leaves its place: {reason}")
    stop = StopAgents(attempt=job.attempt, grace_s=event.grace_s, deadline_us=deadline_us, notice=reason)
    return Step(job, (stop, record), f"leaves with {event.grace_s:g} s of grace, to begin anew: {reason}")


def _reason(event: ResumeRequested) -> str:
    at = "" if event.at_step is None else f" at step {event.at_step}"
    parts = [*([event.code] if event.code else []), *([", ".join(event.changed)] if event.changed else [])]
    changed = f", changed: {'; '.join(parts)}" if parts else ""
    return f"resumed on request{at}{changed}"


def _afresh(job: JobState, event: ResumeRequested, following: int) -> JobState:
    """A person vouches for it: fresh budgets, and crashes at known steps are forgotten.

    On a new branch, nothing past its beginning counts as reached: to do that again is what was asked for.
    """
    lived = history(job)
    kept = History(highest_step=lived.highest_step, committed_step=lived.committed_step)
    job = replace(job, resumed=following, resumes=job.resumes + 1, charges={})
    if event.budgets is not None:
        job = replace(job, budgets=dict(event.budgets))
    if event.at_step is not None and event.at_generation is not None:
        kept = History(highest_step=event.at_step, committed_step=event.at_step)
        branch = Branch(attempt=following, generation=event.at_generation, step=event.at_step)
        job = replace(job, branch=branch, checkpoint_step=event.at_step)
    elif job.branch is not None:
        # Asked for before and not begun yet: that branch is what the job goes on with.
        kept = History(highest_step=job.branch.step, committed_step=job.branch.step)
    return replace(job, history=kept.to_dict())
