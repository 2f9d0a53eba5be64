"""Rules of the lifecycle: the queue and the gang."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from orch.control.lifecycle_common import (
    Step,
    alive,
    awaited,
    charged,
    closing,
    decide,
    lost,
    placed_anew,
    reached,
    requeued,
    start_agents,
    stopping,
    us,
)
from orch.model.commands import CloseJob, KillAgents, RemoveGang, RequestGang
from orch.model.states import AgentStatus, Ending, JobState, State
from orch_policies.restart import Failure

if TYPE_CHECKING:
    from orch.model.commands import Command
    from orch.model.events import Adopted, GangGranted, GangLost, GangRemoved, TurnCame, TurnLost


def turn_came(job: JobState, _event: TurnCame, now_us: int) -> Step:
    """The attempt rises here, before the gang exists, because the gang carries its number."""
    if job.gang is not None:
        return Step(job, (), "has asked for its gang already")
    if job.removing:
        return Step(job, (), f"waits until the gang of attempt {job.removing[0]} is gone")
    if not job.placeable(now_us):
        return Step(job, (), "its delay is not over")
    attempt = max(job.attempt + 1, job.resumed or 0)
    job = replace(
        job, attempt=attempt, restart=0, restored_step=None, gang=attempt, not_before_us=None, down=None
    )
    return Step(job, (RequestGang(attempt=attempt),), f"attempt {attempt} asks for its gang")


def turn_lost(job: JobState, event: TurnLost, _now_us: int) -> Step:
    if job.gang is None:
        return Step(job, (), "has asked for nothing")
    return requeued(job, event.reason or "another job goes first")


def gang_granted(job: JobState, _event: GangGranted, _now_us: int) -> Step:
    ranks = tuple(range(job.workers))
    job = replace(job, state=State.STARTING, gang_granted=True, reason="its agents are being started")
    job = placed_anew(job, ranks)
    return Step(
        job,
        (start_agents(job, ranks),),
        f"gang of attempt {job.attempt} granted, starting {len(ranks)} agent(s)",
    )


def gang_removed(job: JobState, event: GangRemoved, _now_us: int) -> Step:
    job = replace(job, removing=tuple(gang for gang in job.removing if gang != event.attempt))
    return Step(job, (), f"gang of attempt {event.attempt} is gone")


def gang_lost_waiting(job: JobState, event: GangLost, _now_us: int) -> Step:
    return requeued(job, f"its gang went away before it was granted: {event.evidence}", gang_exists=False)


def gang_lost(job: JobState, event: GangLost, now_us: int) -> Step:
    """All agents went with it. Charged like a machine that goes away, which is what it nearly always is."""
    job = reached(job, event.step)
    return gone(job, Failure("node_lost", step=event.step, message=event.evidence), now_us, gang_exists=False)


def gone(job: JobState, failure: Failure, now_us: int, *, gang_exists: bool = True) -> Step:
    """No agent is left, its place is gone: queue again, or fail when the budget is used up. One that is to begin anew
    on request queues again, whatever it was that ended its place.
    """
    if job.resuming:
        return requeued(job, job.resuming, gang_exists=gang_exists)
    decision = decide(job, failure)
    job = charged(job, failure, decision)
    if decision.action == "fail":
        return closing(job, Ending(state=State.FAILED, reason=decision.reason))
    not_before_us = now_us + us(decision.delay_s) if decision.delay_s else None
    return requeued(job, decision.reason, not_before_us=not_before_us, gang_exists=gang_exists)


def gang_lost_stopping(job: JobState, event: GangLost, _now_us: int) -> Step:
    job = lost(job, alive(job))
    if job.closing or job.ending is None:
        return Step(job)
    return closing(job, job.ending)._replace(decision=f"its gang went away: {event.evidence}")


# --- what a new controller finds ---


def adopted_waiting(job: JobState, event: Adopted, _now_us: int) -> Step:
    """QUEUED, BLOCKED or over: whatever is there has no business there, except a gang that was asked for."""
    commands: list[Command] = []
    if event.found:
        commands.append(KillAgents(strays=dict(event.found)))
    if event.gang is not None and event.gang != job.gang:
        commands.append(RemoveGang(attempt=event.gang))
        if job.state is State.QUEUED and event.gang not in job.removing:
            job = replace(job, removing=(*job.removing, event.gang))
    # Its removal may be done and the answer lost with the controller that waited for it.
    told = {command.attempt for command in commands if isinstance(command, RemoveGang)}
    commands += [RemoveGang(attempt=gang) for gang in job.removing if gang not in told]
    if job.gang is not None and event.gang is None:
        commands.append(RequestGang(attempt=job.gang))
    return Step(
        job, tuple(commands), f"{len(commands)} thing(s) to put right" if commands else "as it should be"
    )


def adopted_stopping(job: JobState, event: Adopted, now_us: int) -> Step:
    job = lost(job, missing(job, event))
    if job.ending is None:
        return Step(job)
    if job.closing:
        again = CloseJob(attempt=job.attempt, sweep=job.ending.state is not State.BLOCKED)
        return Step(job, (again,), "closing it goes on")
    if not awaited(job):
        return closing(job, job.ending)
    return stopping(job, now_us)


def missing(job: JobState, event: Adopted) -> tuple[int, ...]:
    """Ranks whose agent had answered and is not there any more."""
    return _not_found(job, event, {AgentStatus.UP, AgentStatus.ENDED})


def never_seen(job: JobState, event: Adopted) -> tuple[int, ...]:
    """Ranks whose agent was asked for, has not answered yet and is not there."""
    return _not_found(job, event, {AgentStatus.STARTING})


def _not_found(job: JobState, event: Adopted, status: set[AgentStatus]) -> tuple[int, ...]:
    return tuple(
        rank
        for rank, agent in sorted(job.agents.items())
        if agent.status in status and event.found.get(rank) != agent.placed
    )


def strays(job: JobState, event: Adopted) -> dict[int, int]:
    expected = {rank: agent.placed for rank, agent in job.agents.items()}
    return {rank: placed for rank, placed in event.found.items() if expected.get(rank) != placed}
