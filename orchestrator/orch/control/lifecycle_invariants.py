"""What holds for every job after every event. Tests and the simulation call `validate` after each one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orch.control.lifecycle_common import books, charges
from orch.model.states import ENDED, PLACED, JobState, State

if TYPE_CHECKING:
    from collections.abc import Iterator

    from orch_policies.restart import Budget

_BUDGETS: tuple[Budget, ...] = ("failures", "hangs", "preemptions")


def validate(job: JobState) -> None:
    """AssertionError with every broken invariant, if there is one."""
    broken = [*_numbers(job), *_of_state(job), *_budget(job)]
    assert not broken, f"job {job.job} ({job.state}, generation {job.generation}): {'; '.join(broken)}"


def _numbers(job: JobState) -> Iterator[str]:
    if job.restart < 0 or job.attempt < 0:
        yield "negative attempt or restart"
    if job.down is not None and job.down > job.generation:
        yield "a generation ended that was never started"
    for rank, agent in job.agents.items():
        if not 0 <= rank < job.workers:
            yield f"an agent of rank {rank} with {job.workers} worker(s)"
        if agent.placed > job.attempt:
            yield f"rank {rank} was placed by an attempt to come"
        if agent.started is not None and agent.started > job.generation:
            yield f"rank {rank} runs a generation to come"
    if job.gang is not None and (job.gang > job.attempt or job.gang in job.removing):
        yield f"gang {job.gang} is of an attempt to come, or being removed"
    if sum(job.spent_us.values()) != job.seen_us - job.submitted_us:
        yield "the times in the states do not sum to the job's age"
    accounts = books(job)
    if accounts.total_us != job.seen_us - job.submitted_us or min(accounts.us.values(), default=0) < 0:
        yield f"the books do not sum to the job's age: {dict(accounts.us)}"


def _of_state(job: JobState) -> Iterator[str]:
    if (job.ending is not None) != (job.state is State.STOPPING):
        yield "an end that is decided belongs to STOPPING, and to it alone"
    if job.stop_deadline_us is not None and job.state not in PLACED | {State.STOPPING}:
        yield "asked to stop, and nobody is there"
    if job.resuming and job.state not in PLACED | {State.STOPPING}:
        yield "leaves to begin anew, and has no place"
    if job.branch is not None and job.resumed is not None and job.branch.attempt > job.resumed:
        yield "a branch of an attempt that nobody asked for"
    if job.closing and job.state is not State.STOPPING:
        yield "closing without stopping"
    if (job.ended_us is not None) != (job.state in ENDED):
        yield "the time of the end belongs to an end"
    if job.state in PLACED:
        if job.gang is None or not job.gang_granted or job.removing:
            yield "placed without a gang of its own alone"
        if set(job.agents) != set(range(job.workers)):
            yield "placed, and not every rank has an agent"
        if not any(agent.alive for agent in job.agents.values()):
            yield "placed, and nobody is alive"
    if job.state is State.QUEUED and (job.agents or job.gang_granted):
        yield "queued with agents or a granted gang"
    if job.state in ENDED | {State.BLOCKED} and (job.agents or job.gang is not None or job.removing):
        yield "over, and still holding something"


def _budget(job: JobState) -> Iterator[str]:
    """Above the limit is right where a leader's charge was reported only after its death."""
    spent = charges(job)
    for budget in _BUDGETS:
        if spent.spent(budget) < 0:
            yield f"{spent.spent(budget)} charged to {budget}"
