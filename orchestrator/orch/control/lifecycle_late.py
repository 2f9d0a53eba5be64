"""Which events belong to the past: to a superseded attempt or generation, or to what is known already."""

from __future__ import annotations

from orch.model import events as ev
from orch.model.states import ENDED, PLACED, AgentStatus, JobState, State

_OF_AGENT = ev.AgentUp | ev.AgentLost | ev.PreemptionNoticed | ev.WorkerEnded
_OF_PROCESS = (
    ev.ProcessStarted
    | ev.Restored
    | ev.WarmStarted
    | ev.Recovered
    | ev.Progressed
    | ev.ProcessExited
    | ev.RestartDecided
)


def from_the_future(job: JobState, event: ev.Event) -> bool:
    """Whether `event` names an attempt that nobody but another controller can have made."""
    generation = getattr(event, "generation", None)
    attempt = generation.attempt if generation is not None else getattr(event, "attempt", 0)
    return bool(attempt > job.attempt)


def why_late(job: JobState, event: ev.Event) -> str | None:
    """In words why `event` is to be ignored, or None."""
    if isinstance(event, _OF_AGENT):
        return _agent(job, event)
    if isinstance(event, _OF_PROCESS):
        return _process(job, event)
    if isinstance(event, ev.CheckpointCommitted):
        return _checkpoint(job, event)
    return _gang(job, event)


def _agent(
    job: JobState, event: ev.AgentUp | ev.AgentLost | ev.PreemptionNoticed | ev.WorkerEnded
) -> str | None:
    agent = job.agents.get(event.rank)
    if agent is None:
        return f"the job has no agent of rank {event.rank}"
    if agent.placed != event.attempt:
        return f"the agent of rank {event.rank} is of attempt {agent.placed}"
    # An agent that has ended its worker is still needed: to begin again, should the gang have to.
    needed = agent.alive or (isinstance(event, ev.AgentLost) and agent.status is AgentStatus.ENDED)
    if not needed:
        return f"the agent of rank {event.rank} has {agent.status} already"
    return None


def _process(
    job: JobState,
    event: ev.ProcessStarted
    | ev.Restored
    | ev.WarmStarted
    | ev.Recovered
    | ev.Progressed
    | ev.ProcessExited
    | ev.RestartDecided,
) -> str | None:
    if event.generation.attempt < job.attempt:
        return f"attempt {job.attempt} goes on"
    if job.state not in PLACED and job.state is not State.STOPPING:
        return "the job is not placed"
    if isinstance(event, ev.RestartDecided):
        return None  # its rule tells new from known, and books the charge either way
    if event.generation.restart < job.restart:
        return f"restart {job.restart} goes on"
    if job.down is not None and event.generation <= job.down:
        return "this generation's process is known to have ended"
    rank = getattr(event, "rank", 0)
    if rank not in job.agents or not job.agents[rank].alive:
        return f"the worker of rank {rank} has ended"
    return None


def _checkpoint(job: JobState, event: ev.CheckpointCommitted) -> str | None:
    """An older generation's counts if the present one continues from there or later: it is chained then."""
    if job.state in ENDED or job.state is State.BLOCKED:
        return "the job is over"
    if job.branch is not None and event.generation.attempt < job.branch.attempt:
        return f"the job goes on from step {job.branch.step} on request"
    if event.generation < job.generation and event.step > (job.restored_step or 0):
        if job.restored_step is None:
            return f"generation {job.generation} has not restored anything yet"
        return f"generation {job.generation} goes on from an earlier step"
    return None


def _gang(job: JobState, event: ev.Event) -> str | None:
    match event:
        case ev.GangGranted():
            if job.gang != event.attempt:
                return "this gang was given back"
            return "known already" if job.gang_granted else None
        case ev.GangRemoved():
            return None if event.attempt in job.removing else "known already"
        case ev.GangLost():
            return None if job.gang == event.attempt else "the job does not have this gang"
        case ev.StopOverdue():
            waits = job.stop_deadline_us is not None and not job.closing
            return None if waits and event.attempt == job.attempt else "nothing waits for it"
        case ev.Closed():
            if not job.closing or event.attempt != job.attempt:
                return "nothing waits for it"
            to_sweep = job.ending is not None and job.ending.state is not State.BLOCKED
            return "not swept yet" if to_sweep and not event.swept else None
    return None
