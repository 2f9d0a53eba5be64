"""Rules of the lifecycle: agents and training processes, their failures and their recovery."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from orch.control.lifecycle_common import (
    Step,
    alive,
    awaited,
    charged,
    charges,
    closing,
    decide,
    history,
    leaving,
    lost,
    merge_restart,
    placed_anew,
    policy,
    reached,
    requeued,
    start_agents,
    stopping,
    us,
    with_agent,
)
from orch.control.lifecycle_placing import gang_lost, gone, missing, never_seen, strays
from orch.model.commands import KillAgents, RaiseAttempt
from orch.model.events import GangLost, Recovered
from orch.model.generation import Generation
from orch.model.states import AgentStatus, Ending, JobState, State
from orch_policies import restart
from orch_policies.classification import Failure, lost_worker
from orch_workers.training.protocol import EXIT_LEFT

if TYPE_CHECKING:
    from orch.model.commands import Command
    from orch.model.events import (
        Adopted,
        AgentLost,
        AgentUp,
        CheckpointCommitted,
        ProcessExited,
        ProcessStarted,
        Progressed,
        RestartDecided,
        Restored,
        StopOverdue,
        WarmStarted,
        WorkerEnded,
    )


def agent_up(job: JobState, event: AgentUp, _now_us: int) -> Step:
    job = with_agent(
        job, event.rank, status=AgentStatus.UP, node=event.node, node_id=event.node_id, pid=event.pid
    )
    answers = f"agent of rank {event.rank} answers"
    if job.state is State.STOPPING or job.agents[event.rank].placed == job.attempt:
        return Step(job, (), answers)
    # The attempt was raised while it was being started: RaiseAttempt may have come before it was there.
    again = RaiseAttempt(attempt=job.attempt, ranks=(event.rank,), policy=policy(job))
    return Step(job, (again,), f"{answers} and adopts attempt {job.attempt}")


# --- training processes ---


def process_started(job: JobState, event: ProcessStarted, now_us: int) -> Step:
    job = _at_generation(job, event.generation)
    job = with_agent(job, event.rank, status=AgentStatus.UP, started=event.generation)
    started_us = now_us if job.started_us is None else job.started_us
    job = replace(job, started_us=started_us, lost_node="")
    everywhere = all(agent.started == job.generation for agent in job.agents.values() if agent.alive)
    waits_for_step = job.state is State.RECOVERING and bool(job.step)
    if job.state is State.STOPPING or not everywhere or waits_for_step:
        return Step(job, (), f"training process of rank {event.rank} runs")
    return Step(replace(job, state=State.RUNNING, reason=""), (), "training processes run")


def restored(job: JobState, event: Restored, _now_us: int) -> Step:
    job = replace(_at_generation(job, event.generation), restored_step=event.step)
    if event.source == "storage":
        job = replace(job, checkpoint_step=event.step)
    return Step(job, (), f"restored step {event.step} from {event.source}")


def warm_started(job: JobState, event: WarmStarted, _now_us: int) -> Step:
    """With another job's weights: of its own there was nothing to restore."""
    job = _at_generation(job, event.generation)
    left = len(event.skipped) + len(event.missing) + len(event.reshaped)
    rest = f", {left} not" if left else ""
    return Step(job, (), f"began with {event.source}: {event.loaded} tensors and arguments loaded{rest}")


def progressed(job: JobState, event: Progressed | Recovered, _now_us: int) -> Step:
    """A new step of the present generation ends a recovery; why_late has sorted out older reports."""
    job = reached(_at_generation(job, event.generation), event.step)
    new = event.step > (job.restored_step or 0)
    if job.state in {State.STARTING, State.RECOVERING} and new:
        cost = _cost(event) if isinstance(event, Recovered) and job.state is State.RECOVERING else ""
        return Step(
            replace(job, state=State.RUNNING, reason=""), (), f"step {event.step} done: training again{cost}"
        )
    return Step(job)


def _cost(event: Recovered) -> str:
    took = "" if event.recovery_s is None else f" and {event.recovery_s:.2f} s"
    work = "" if event.lost_s is None else f" ({event.lost_s:.2f} s of work)"
    return f"; it cost {event.lost_steps} step(s){work}{took}"


def process_exited(job: JobState, event: ProcessExited, _now_us: int) -> Step:
    """What follows is the leader's to say: a RestartDecided or a WorkerEnded comes next."""
    job = reached(_at_generation(job, event.generation), event.step)
    if job.state is State.STOPPING or event.code in {0, EXIT_LEFT}:
        return Step(job)
    failure = Failure("process_exit", exit_code=event.code, signal=event.signal, step=event.step)
    reason = f"rank {event.rank}: {event.what or restart.describe(failure)}"
    job = replace(job, state=State.RECOVERING, down=event.generation, reason=reason)
    return Step(job, (), "the leader decides")


def restart_decided(job: JobState, event: RestartDecided, _now_us: int) -> Step:
    """The leader has decided and acted; the charge is booked, and the job waits for the new generation."""
    known = event.generation <= job.generation
    job = merge_late(job, event)
    if known or job.state is State.STOPPING:
        return Step(job, (), "known already")
    job = _at_generation(job, event.generation)
    inexact = job.inexact
    if (event.failure or {}).get("kind") == "bad_numbers":
        inexact = f"rolled back at step {event.step}, and data left out"
    job = replace(job, state=State.RECOVERING, reason=event.reason, inexact=inexact)
    return Step(job, (), event.reason)


def merge_late(job: JobState, event: RestartDecided) -> JobState:
    """Books a restart's charge, also one that is reported only after its attempt is history."""
    failure = (
        Failure("process_exit", step=event.step)
        if event.failure is None
        else Failure.from_dict(dict(event.failure))
    )
    return merge_restart(job, event.generation, failure, cast("Any", event.charge_to))


def checkpoint_committed(job: JobState, event: CheckpointCommitted, _now_us: int) -> Step:
    before = charges(job).given_back
    paid, lived = restart.committed(charges(job), history(job), event.step)
    step = max(event.step, job.checkpoint_step or 0)
    job = replace(job, charges=paid.to_dict(), history=lived.to_dict(), checkpoint_step=step)
    if job.branch is not None and event.generation.attempt >= job.branch.attempt:
        job = replace(job, branch=None)  # the chain is that of a later generation now
    if paid.given_back == before:
        return Step(job)
    return Step(job, (), f"checkpoint of step {event.step} is beyond the last failure: one charge given back")


def _at_generation(job: JobState, generation: Generation) -> JobState:
    """The job at `generation`, of the present attempt: a newer restart means that the older one is down."""
    if generation.restart <= job.restart:
        return job
    down = Generation(job.attempt, generation.restart - 1) if generation.restart > 1 else job.down
    return replace(job, restart=generation.restart, restored_step=None, down=down)


# --- workers that end, agents that die ---


def worker_ended(job: JobState, event: WorkerEnded, now_us: int) -> Step:
    job = with_agent(reached(job, event.step), event.rank, status=AgentStatus.ENDED, outcome=event.outcome)
    if job.resuming:  # whatever it ended with meanwhile, it is to begin anew
        return _leave(job, now_us, event.reason)
    if event.outcome == "succeeded":
        return _succeeded(job) or _done(job, event.rank, now_us)
    if event.outcome in {"left", "stopped"}:
        return _leave(job, now_us, event.reason)
    return closing(
        job,
        Ending(
            state=State.BLOCKED if event.outcome == "blocked" else State.FAILED,
            reason=event.reason or f"rank {event.rank} ended: {event.outcome}",
            exit_code=event.exit_code,
            traceback=event.traceback,
        ),
    )


def _done(job: JobState, rank: int, now_us: int) -> Step:
    """The leader says when the job is over. Where it has gone from a place that is given up, nobody will: from what all
    saved last, the next attempt soon finds that everything is done.
    """
    if leaving(job) and not awaited(job):
        return _leave(job, now_us, job.reason)
    return Step(job, (), f"rank {rank} is done; the leader says when the job is")


def worker_ended_stopping(job: JobState, event: WorkerEnded, _now_us: int) -> Step:
    """The end that was seen counts, not the one that was asked for: all done before the stop is success."""
    job = with_agent(reached(job, event.step), event.rank, status=AgentStatus.ENDED, outcome=event.outcome)
    if job.closing or job.ending is None:
        return Step(job)
    success = _succeeded(job)
    if success is not None:
        return success
    if awaited(job):
        return Step(job, (), f"rank {event.rank} has ended, others have not")
    return closing(job, replace(job.ending, exit_code=event.exit_code))


def _succeeded(job: JobState) -> Step | None:
    """The leader speaks for the gang: it reports success once every rank's process has ended with success."""
    if job.agents[0].outcome != "succeeded":
        return None
    return closing(job, Ending(state=State.SUCCEEDED, reason="its command ended with success", exit_code=0))


def _leave(job: JobState, now_us: int, reason: str) -> Step:
    """One that leaves takes the gang along; placed again when the last one has left, charged once."""
    if not awaited(job):
        return gone(job, Failure("preempted", step=job.step, message=reason), now_us)
    if job.stop_deadline_us is not None:
        return Step(job, (), "waits for the others to leave")
    return stopping(job, now_us)


def leave_overdue(job: JobState, _event: StopOverdue, now_us: int) -> Step:
    """The rest of a leaving gang has not left in time; the gang's removal ends it."""
    return gone(job, Failure("preempted", step=job.step, message="not all left in time"), now_us)


def agent_lost(job: JobState, event: AgentLost, now_us: int) -> Step:
    job = reached(job, event.step)
    failure = lost_worker(
        event.evidence,
        step=event.step,
        node_lost=event.node_lost,
        preempted=event.preempted or bool(job.agents[event.rank].notice),
        node_state=event.node_state,
        drain_deadline_us=event.drain_deadline_us,
    )
    agent = job.agents[event.rank]
    node = agent.node_id or agent.node
    if not event.node_lost or not node:
        return lose(job, (event.rank,), failure, now_us)
    if node != job.lost_node:
        return lose(replace(job, lost_node=node), (event.rank,), failure, now_us)
    return _lose_also(job, event.rank, now_us)


def _lose_also(job: JobState, rank: int, now_us: int) -> Step:
    """Another worker of a machine that has been charged already: one machine is one preemption."""
    job, node = lost(job, (rank,)), job.agents[rank].node
    if leaving(job):  # not charged yet: that comes once for all, when the last one is gone
        return _leave(job, now_us, f"{node} took rank {rank} along")
    reason = f"{node} took rank {rank} along, charged already"
    if not alive(job):
        return requeued(job, reason, not_before_us=job.not_before_us)
    return _replace_agents(replace(job, state=State.RECOVERING), (rank,), reason)


def lose(job: JobState, ranks: tuple[int, ...], failure: Failure, now_us: int) -> Step:
    """Replaces the agents of `ranks` in the same gang: a new attempt, which the survivors adopt.

    Nobody is left and the machine is gone: the gang is given back and the job queues again. Somebody is
    leaving already: nobody is replaced. The budget is used up: the job fails.
    """
    job = lost(job, ranks)
    if leaving(job):
        return _leave(job, now_us, failure.message)
    if failure.kind in {"node_lost", "preempted"} and not alive(job):
        return gone(job, failure, now_us)
    decision = decide(job, failure)
    job = charged(job, failure, decision)
    if decision.action == "fail":
        return closing(job, Ending(state=State.FAILED, reason=decision.reason))
    not_before_us = now_us + us(decision.delay_s) if decision.delay_s else None
    job = replace(job, state=State.RECOVERING, not_before_us=not_before_us)
    return _replace_agents(job, ranks, decision.reason)


def _replace_agents(job: JobState, ranks: tuple[int, ...], reason: str) -> Step:
    """A rank that was done already begins again with the others: it goes on from where they do."""
    survivors = tuple(rank for rank in sorted(job.agents) if rank not in ranks)
    for rank in survivors:
        if job.agents[rank].status is AgentStatus.ENDED:
            job = with_agent(job, rank, status=AgentStatus.UP, outcome=None)
    attempt = job.attempt + 1
    state = State.STARTING if job.state is State.STARTING else State.RECOVERING
    job = replace(job, state=state, reason=reason, attempt=attempt, restart=0, restored_step=None, down=None)
    job = placed_anew(job, ranks)
    commands: list[Command] = [start_agents(job, ranks, job.not_before_us)]
    if survivors:
        commands.append(RaiseAttempt(attempt=attempt, ranks=survivors, policy=policy(job)))
    return Step(job, tuple(commands), reason)


def agent_lost_stopping(job: JobState, event: AgentLost, _now_us: int) -> Step:
    job = lost(job, (event.rank,))
    if job.closing or job.ending is None or awaited(job):
        return Step(job, (), f"agent of rank {event.rank} is gone")
    return closing(job, job.ending)


def adopted(job: JobState, event: Adopted, now_us: int) -> Step:
    """Training went on without a controller; what is there stays, what is missing is replaced.

    An agent that was asked for and is not there may have lived, trained and died unseen: it is replaced as
    well, by a new attempt, because its generations must not be made twice; but nothing is charged for it.
    """
    unexpected = strays(job, event)
    kill: tuple[Command, ...] = (KillAgents(strays=unexpected),) if unexpected else ()
    if event.gang != job.gang:
        step = gang_lost(job, GangLost(attempt=job.gang or 0, evidence=event.evidence, step=job.step), now_us)
        return step._replace(commands=(*kill, *step.commands))
    gone_ranks = missing(job, event)
    unseen = () if leaving(job) else never_seen(job, event)
    for rank in alive(job):
        if rank not in (*gone_ranks, *unseen):
            job = with_agent(job, rank, status=AgentStatus.UP)
    if gone_ranks:
        failure = Failure("agent_lost", step=job.step, message=event.evidence)
        step = lose(job, tuple(sorted((*gone_ranks, *unseen))), failure, now_us)
        if not step.commands and step.job.stop_deadline_us is not None:
            # The others leave; whoever was to see that they do it in time has died with the controller.
            step = stopping(step.job, now_us)._replace(decision=step.decision)
    elif unseen:
        step = _replace_agents(
            job, unseen, f"no agent of rank {unseen[0]} is there; whether one was is not known"
        )
    elif job.stop_deadline_us is not None:
        step = stopping(job, now_us)
    else:
        step = Step(job, (), "found as it should be")
    return step._replace(commands=(*kill, *step.commands))
