"""From events to the rows that status shows: attempts, restarts, checkpoints. Derived, never decided upon."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orch.control.transaction import Transaction
from orch.model import events as ev
from orch.model.events import Event
from orch.model.states import ENDED, JobState, State
from orch_policies.restart import BUDGETS


def tabulate(
    transaction: Transaction,
    before: JobState,
    after: JobState,
    event: Event,
    now_us: int,
    extra: Mapping[str, Any],
) -> None:
    """Brings the rows up to date with one event, inside its transaction."""
    job = after.job
    if after.attempt > before.attempt:
        if before.attempt:
            transaction.put_attempt(job, before.attempt, ended_us=now_us, outcome=_why(event, after))
        transaction.put_attempt(job, after.attempt, started_us=now_us, reason=_reason(before, after))
        if before.attempt:
            transaction.put_restart(job, after.attempt, 1, **_cause(before, after, event))
    if charged := _charged(before, after):
        if after.attempt > before.attempt:
            transaction.put_restart(job, after.attempt, 1, charged_to=charged)
        elif after.state is State.QUEUED:  # the attempt that it makes necessary is still to come
            transaction.put_restart(job, after.attempt + 1, 1, charged_to=charged)
    if after.state in ENDED and before.state not in ENDED:
        transaction.put_attempt(job, after.attempt, ended_us=now_us, outcome=after.state.value.lower())
    for generation, step in extra.get("poisoned", ()):
        reason = f"poisoned: {getattr(event, 'what', '')}"
        transaction.mark_checkpoint(job, generation, step, "quarantined", reason=reason)
    for generation, step, reason in extra.get("left_behind", ()):
        transaction.mark_checkpoint(job, generation, step, "quarantined", reason=reason)
    match event:
        case ev.AgentUp():
            transaction.put_attempt(job, event.attempt, node=event.node)
        case ev.CheckpointCommitted():
            transaction.put_checkpoint(
                job,
                str(event.generation),
                event.step,
                committed_us=now_us,
                epoch=extra.get("epoch"),
                size_bytes=event.size_bytes,
                duration_us=None if event.seconds_s is None else round(event.seconds_s * 1e6),
            )
            for generation, step in extra.get("deleted", ()):
                transaction.mark_checkpoint(
                    job, generation, step, "deleted", reason="no rule of `keep` asks for it"
                )
        case _:
            _tabulate_restart(transaction, before, after, event, now_us)


def _tabulate_restart(
    transaction: Transaction, before: JobState, after: JobState, event: Event, now_us: int
) -> None:
    job = after.job
    match event:
        case ev.ProcessStarted():
            transaction.put_restart(job, *event.generation, started_us=now_us)
        case ev.RestartDecided():
            transaction.put_restart(
                job,
                *event.generation,
                cause=event.reason,
                decision=after.story[-1].decision,
                charged_to=event.charge_to,
            )
        case ev.ProcessExited():
            transaction.put_restart(
                job,
                *event.generation,
                ended_us=now_us,
                exit_code=event.code,
                signal=event.signal,
                evidence=event.evidence,
            )
        case ev.Restored():
            transaction.put_restart(
                job, *event.generation, restored_step=event.step, restored_from=event.source
            )
        case ev.Recovered():
            recovery_us = round(event.recovery_s * 1e6) if event.recovery_s is not None else None
            if recovery_us is None:
                recovery_us = down_us(before, now_us)
            transaction.put_restart(
                job,
                *event.generation,
                lost_steps=event.lost_steps,
                lost_us=None if event.lost_s is None else round(event.lost_s * 1e6),
                recovery_us=recovery_us,
            )
        case ev.AgentLost() if before.restart:  # else nothing had been started yet
            transaction.put_restart(job, *before.generation, ended_us=now_us, evidence=event.evidence)
        case ev.WorkerEnded() if before.restart:
            if event.outcome == "left":
                code = "" if event.exit_code is None else f" with exit code {event.exit_code}"
                evidence = f"its worker left{code}: {event.reason}"
                transaction.put_restart(job, *before.generation, evidence=evidence)
            transaction.put_restart(job, *before.generation, ended_us=now_us)
        case _:
            pass


def down_us(before: JobState, now_us: int) -> int | None:
    """How long a job that trains again has not: of a loss that its agent did not survive, nobody else can tell. None of
    its first start.
    """
    return now_us - before.since_us if before.attempt > 1 else None


def _cause(before: JobState, after: JobState, event: Event) -> dict[str, Any]:
    """Why a new attempt was made: what was lost just now, or why the job was waiting again."""
    # The decision's sentence repeats the evidence, which stands beside it here.
    decision = after.story[-1].decision.replace(f": {getattr(event, 'evidence', '')}", "")
    match event:
        case ev.AgentLost() | ev.Adopted():
            return {"cause": "agent lost", "evidence": event.evidence, "decision": decision}
        case ev.GangLost():
            return {"cause": "machines lost", "evidence": event.evidence, "decision": decision}
        case _:
            return {"cause": before.reason, "decision": decision}


def _charged(before: JobState, after: JobState) -> str | None:
    """The budget that this event was charged to."""
    return next((name for name in BUDGETS if after.charges.get(name, 0) > before.charges.get(name, 0)), None)


def _reason(before: JobState, after: JobState) -> str | None:
    return after.story[-1].decision if before.attempt else None


def _why(event: Event, after: JobState) -> str:
    return getattr(event, "evidence", "") or after.reason
