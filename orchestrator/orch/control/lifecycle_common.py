"""What the rules of the lifecycle share: the shape of an answer, the budgets, letting agents and gangs go."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from orch.model.commands import CloseJob, Command, RemoveGang, StartAgents, StopAgents
from orch.model.states import AgentState, AgentStatus, Ending, JobState, State
from orch_policies import goodput, restart

if TYPE_CHECKING:
    from orch.model.generation import Generation

STOP_MARGIN_S = 30.0
"""How much longer than the grace period a stop may take (KILL, last logs) before the agents are ended."""
MERGED_MAX = 256
"""Restarts remembered, so that a repeated report is not charged twice; older ones count as merged."""


class Step(NamedTuple):
    """A rule's answer; `decision` says in words what was done and why."""

    job: JobState
    commands: tuple[Command, ...] = ()
    decision: str = "noted"


def us(seconds_s: float) -> int:
    return round(seconds_s * 1_000_000)


# --- budgets: orch_policies.restart in the JSON form in which a job carries it ---


def budgets(job: JobState) -> restart.Budgets:
    return restart.Budgets.from_dict(dict(job.budgets))


def charges(job: JobState) -> restart.Charges:
    return restart.Charges.from_dict(dict(job.charges)) if job.charges else restart.Charges()


def history(job: JobState) -> restart.History:
    return restart.History.from_dict(dict(job.history)) if job.history else restart.History()


def policy(job: JobState) -> dict[str, Any]:
    """What the leader of the present attempt decides with."""
    return {
        "budgets": budgets(job).to_dict(),
        "charges": charges(job).to_dict(),
        "history": history(job).to_dict(),
        "seed": f"{job.seed}/{job.job}/{job.attempt}",
    }


def decide(job: JobState, failure: restart.Failure) -> restart.Decision:
    return restart.decide(budgets(job), charges(job), history(job), failure, policy(job)["seed"])


def charged(job: JobState, failure: restart.Failure, decision: restart.Decision) -> JobState:
    paid, lived = restart.record(charges(job), history(job), failure, decision)
    return replace(job, charges=paid.to_dict(), history=lived.to_dict())


def merge_restart(job: JobState, generation: Generation, failure: restart.Failure, to: Any) -> JobState:
    """Charges a restart that the leader decided, once however often it is reported."""
    forgotten = len(job.merged) == MERGED_MAX and generation < job.merged[0]
    before = job.resumed is not None and generation.attempt < job.resumed  # budgets were made anew since
    if generation in job.merged or forgotten or before:
        return job
    job = charged(job, failure, restart.Decision("restart", to, 0.0, ""))
    return replace(job, merged=tuple(sorted((*job.merged, generation)))[-MERGED_MAX:])


def reached(job: JobState, step: int | None) -> JobState:
    """The highest step known, raised to `step`."""
    if step is None or (job.step is not None and step <= job.step):
        return job
    if job.branch is not None and job.attempt < job.branch.attempt:
        return replace(job, step=step)  # what is still done there lies off the chain to come
    return replace(job, step=step, history=restart.stepped(history(job), step).to_dict())


def attempt_to_ask_for(job: JobState) -> int:
    """Of a resume: above all that were made, and above that of a resume before it, whose branch, or whose end while it
    still waited, may stand in storage under its number.
    """
    return max(job.attempt, job.resumed or 0) + 1


def books(job: JobState) -> goodput.Books:
    """Where the job's time went; of a job that an older version wrote down, by its states."""
    return goodput.Books.from_dict(job.books) if job.books else goodput.Books.of_states(job.spent_us)


# --- agents ---


def with_agent(job: JobState, rank: int, **changes: Any) -> JobState:
    return replace(job, agents={**job.agents, rank: replace(job.agents[rank], **changes)})


def alive(job: JobState) -> tuple[int, ...]:
    return tuple(rank for rank, agent in sorted(job.agents.items()) if agent.alive)


def awaited(job: JobState) -> tuple[int, ...]:
    """Ranks whose end is worth waiting for: an agent that has not even answered has nothing to save."""
    return tuple(rank for rank, agent in sorted(job.agents.items()) if agent.status is AgentStatus.UP)


def leaving(job: JobState) -> bool:
    """Whether the gang has begun to leave its place, or was told to: nobody is replaced then."""
    return job.stop_deadline_us is not None or any(
        agent.outcome in {"left", "stopped"} for agent in job.agents.values()
    )


def placed_anew(job: JobState, ranks: tuple[int, ...]) -> JobState:
    """`ranks` get agents that the present attempt places."""
    return replace(job, agents={**job.agents, **{rank: AgentState(placed=job.attempt) for rank in ranks}})


def start_agents(job: JobState, ranks: tuple[int, ...], not_before_us: int | None = None) -> StartAgents:
    """Of the present attempt, in the gang that the job has."""
    return StartAgents(
        attempt=job.attempt,
        ranks=ranks,
        gang_attempt=job.gang or job.attempt,
        not_before_us=not_before_us,
        policy=policy(job),
        resumed=job.resumed,
        branch=job.branch,
    )


def lost(job: JobState, ranks: tuple[int, ...]) -> JobState:
    for rank in ranks:
        job = with_agent(job, rank, status=AgentStatus.LOST)
    return job


# --- letting go ---


def stopping(job: JobState, now_us: int) -> Step:
    """The agents are asked to stop; repeated (by a new controller), the deadline stays what it was."""
    if job.stop_deadline_us is None:
        job = replace(job, stop_deadline_us=now_us + us(job.grace_s + STOP_MARGIN_S))
    deadline_us = job.stop_deadline_us or now_us
    stop = StopAgents(attempt=job.attempt, grace_s=job.grace_s, deadline_us=deadline_us)
    return Step(job, (stop,), f"stopping with {job.grace_s:g} s of grace")


def requeued(
    job: JobState, reason: str, *, not_before_us: int | None = None, gang_exists: bool = True
) -> Step:
    """Back to the queue, the gang given back; nothing is placed until it was seen to be gone."""
    commands: tuple[Command, ...] = ()
    removing = job.removing
    if job.gang is not None and gang_exists:
        commands = (RemoveGang(attempt=job.gang),)
        removing = (*removing, job.gang)
    job = replace(
        job,
        state=State.QUEUED,
        reason=reason,
        gang=None,
        gang_granted=False,
        removing=removing,
        agents={},
        stop_deadline_us=None,
        not_before_us=not_before_us,
        resuming="",
    )
    return Step(job, commands, reason)


def closing(job: JobState, ending: Ending) -> Step:
    """The end is decided: everything is ended and, unless the job may go on later, swept."""
    job = replace(job, state=State.STOPPING, ending=ending, closing=True, reason=ending.reason)
    sweep = ending.state is not State.BLOCKED
    return Step(
        job, (CloseJob(attempt=job.attempt, sweep=sweep),), f"{ending.state} to come: {ending.reason}"
    )
