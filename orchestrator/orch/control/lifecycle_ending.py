"""Rules of the lifecycle: cancel, block, close."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from orch.control.lifecycle_common import Step, awaited, closing, stopping
from orch.model.states import ENDED, Ending, JobState, State

if TYPE_CHECKING:
    from orch.model.events import (
        BlockedBecause,
        CancelRequested,
        Closed,
        StopOverdue,
        Unblocked,
    )

_CANCELLED = Ending(state=State.CANCELLED, reason="cancelled on request")


def cancel_waiting(job: JobState, _event: CancelRequested, _now_us: int) -> Step:
    return closing(job, _CANCELLED)


def cancel_placed(job: JobState, event: CancelRequested, now_us: int) -> Step:
    if event.now or not awaited(job):
        return closing(job, _CANCELLED)
    job = replace(job, state=State.STOPPING, ending=_CANCELLED, reason=_CANCELLED.reason)
    return stopping(job, now_us)


def cancel_stopping(job: JobState, event: CancelRequested, _now_us: int) -> Step:
    """Sooner than asked before, or for good where it was to be blocked; any other end stands."""
    ends_blocked = job.ending is not None and job.ending.state is State.BLOCKED
    if ends_blocked or (event.now and not job.closing):
        return closing(job, _CANCELLED)
    return Step(job, (), "its end is decided already")


def stop_overdue(job: JobState, _event: StopOverdue, _now_us: int) -> Step:
    """What has not stopped in time is ended."""
    assert job.ending is not None  # validate(): STOPPING has one
    return closing(job, job.ending)._replace(decision="not stopped in time: ending its agents")


def closed(job: JobState, _event: Closed, now_us: int) -> Step:
    """Seen to be gone: only now is the job over."""
    ending = job.ending
    assert ending is not None  # validate(): STOPPING has one
    job = replace(
        job,
        state=ending.state,
        reason=ending.reason,
        exit_code=ending.exit_code,
        traceback=ending.traceback,
        ending=None,
        closing=False,
        gang=None,
        gang_granted=False,
        removing=(),
        agents={},
        stop_deadline_us=None,
        not_before_us=None,
        resuming="",
        ended_us=now_us if ending.state in ENDED else None,
    )
    return Step(job, (), f"seen to be gone: {ending.state}")


def _less_branch(job: JobState, event: BlockedBecause) -> JobState:
    """Without the branch that cannot begin: the next resume would wait for it for ever."""
    return job if event.branch is None or job.branch != event.branch else replace(job, branch=None)


def block_waiting(job: JobState, event: BlockedBecause, _now_us: int) -> Step:
    job = _less_branch(job, event)
    if job.gang is None and not job.removing:
        return Step(replace(job, state=State.BLOCKED, reason=event.reason), (), event.reason)
    return block_placed(job, event, _now_us)


def block_placed(job: JobState, event: BlockedBecause, _now_us: int) -> Step:
    return closing(_less_branch(job, event), Ending(state=State.BLOCKED, reason=event.reason))


def block_again(job: JobState, event: BlockedBecause, _now_us: int) -> Step:
    return Step(replace(_less_branch(job, event), reason=event.reason), (), event.reason)


def unblocked(job: JobState, event: Unblocked, _now_us: int) -> Step:
    reason = event.reason or "no longer blocked"
    return Step(replace(job, state=State.QUEUED, reason=reason), (), reason)
