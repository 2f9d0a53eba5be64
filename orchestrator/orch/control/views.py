"""From rows to the JSON documents of docs/api.md. Times are RFC 3339 UTC, units come last in a name."""

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from orch.control.rows import (
    AttemptRow,
    CheckpointRow,
    EventRow,
    JobRow,
    LostWork,
    ProgressRow,
    RestartRow,
)
from orch.control.store import Store
from orch.model.states import ENDED, State
from orch_policies.restart import Charges

__all__ = [
    "event_document",
    "format_time",
    "job_detail",
    "job_events",
    "job_list",
    "json_safe",
    "parse_time_us",
]

Document = dict[str, Any]

REASON_CHARS_MAX = 300
"""Longer reasons are cut in summaries; the detail document has them whole."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_ENDED = {state.value for state in ENDED}


def job_list(
    store: Store,
    *,
    now_us: int,
    states: Sequence[str] = (),
    limit: int = 200,
    before: tuple[int, str] | None = None,
) -> list[Document]:
    """Summaries, newest first; a handful of queries however long the list is."""
    rows = store.jobs(states=states, limit=limit, before=before)
    return _summaries(store, rows, now_us)


def job_detail(store: Store, job: str, *, now_us: int) -> Document:
    """NoSuchJob if there is none."""
    row = store.job(job)
    summary = _summaries(store, [row], now_us)[0]
    progress, lost = store.progress([job]).get(job), store.lost_work([job]).get(job, LostWork())
    lifecycle = row.lifecycle
    return summary | {
        "reason": row.reason,
        "ledger": _ledger(row, lost, progress, now_us),
        "attempts": _attempts(store.attempts(job), store.restarts(job)),
        "checkpoints": [_checkpoint(checkpoint) for checkpoint in store.checkpoints(job)],
        "charges": _counts(lifecycle.get("charges")),
        "budgets": json_safe(lifecycle.get("budgets") or {}),
        "usage": json_safe(progress.usage) if progress else {},
        "spec": json_safe(row.spec),
        "code": json_safe(row.code),
        "exit_code": row.exit_code,
        "error": row.error,
        "notes": [{"time": format_time(note["t_us"]), "text": note["text"]} for note in row.notes],
    }


def job_events(store: Store, job: str, *, after: int = 0, limit: int = 1000) -> list[Document]:
    """NoSuchJob if there is none."""
    events = store.events(job, after=after, limit=limit)
    if not events:
        store.state(job)  # an unknown job is an error, not one without events
    return [event_document(event) for event in events]


def event_document(row: EventRow) -> Document:
    return {
        "seq": row.seq,
        "time": format_time(row.t_us),
        "type": row.type,
        "cause": row.cause,
        "evidence": row.evidence,
        "decision": row.decision,
        "data": json_safe({key: value for key, value in row.data.items() if key != "type"}),
    }


def format_time(t_us: int | None) -> str | None:
    """RFC 3339 UTC with microseconds, of one length, so that text order is time order."""
    if t_us is None:
        return None
    return (_EPOCH + timedelta(microseconds=t_us)).isoformat(timespec="microseconds").replace("+00:00", "Z")


def parse_time_us(text: str) -> int:
    """Reads what `format_time` wrote; ValueError for anything else."""
    found = datetime.fromisoformat(text)
    if found.tzinfo is None:
        raise ValueError(f"{text!r} has no time zone")
    return (found - _EPOCH) // _MICROSECOND


def json_safe(value: Any) -> Any:
    """The value as strict JSON can carry it: numbers that are not finite become "nan", "inf" and "-inf"."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): json_safe(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_safe(item) for item in value]
    return value


def _summaries(store: Store, rows: Sequence[JobRow], now_us: int) -> list[Document]:
    ids = [row.id for row in rows]
    progress, checkpoints = store.progress(ids), store.last_checkpoints(ids)
    starts, lost = store.start_counts(ids), store.lost_work(ids)
    return [
        _summary(
            row,
            progress.get(row.id),
            checkpoints.get(row.id),
            starts=starts.get(row.id, 0),
            lost=lost.get(row.id, LostWork()),
            now_us=now_us,
        )
        for row in rows
    ]


def _summary(
    row: JobRow,
    progress: ProgressRow | None,
    checkpoint: CheckpointRow | None,
    *,
    starts: int,
    lost: LostWork,
    now_us: int,
) -> Document:
    reason = row.reason
    if len(reason) > REASON_CHARS_MAX:
        reason = reason[: REASON_CHARS_MAX - 1] + "…"
    last = None
    if checkpoint is not None:
        age_s = _seconds(max(0, now_us - checkpoint.committed_us))
        last = {"step": checkpoint.step, "time": format_time(checkpoint.committed_us), "age_s": age_s}
    running = row.state not in _ENDED
    return {
        "id": row.id,
        "name": row.name,
        "state": row.state,
        "reason": reason,
        "flags": ["UNPROTECTED"] if row.unprotected else [],
        "submitted": format_time(row.submitted_us),
        "started": format_time(row.started_us),
        "ended": format_time(row.ended_us),
        "priority": row.priority,
        "attempt": row.attempt,
        "restarts": max(0, starts - 1),
        "step": progress.step if progress else None,
        "epoch": progress.epoch if progress else None,
        "metrics": json_safe(progress.metrics) if progress else {},
        "steps_per_s": json_safe(progress.steps_per_s) if progress and running else None,
        "last_checkpoint": last,
        "goodput": _goodput(_ledger(row, lost, progress, now_us)),
    }


def _ledger(row: JobRow, lost: LostWork, progress: ProgressRow | None, now_us: int) -> dict[str, float]:
    """Where the time went; the buckets sum to submit → end (or now). Lost work is taken out of running."""
    end_us = row.ended_us if row.ended_us is not None else now_us
    total_us = max(0, end_us - row.submitted_us)
    spent = {state.value: row.spent_us.get(state.value, 0) for state in State if state not in ENDED}
    # What has passed since the last event was spent in the present state.
    since_us = total_us - sum(spent.values())
    if row.state in spent:
        spent[row.state] = max(0, spent[row.state] + since_us)
    lost_us = lost.lost_us
    if lost.steps_without_time and progress is not None and progress.steps_per_s:
        rate = progress.steps_per_s
        if math.isfinite(rate) and rate > 0:
            lost_us += round(lost.steps_without_time / rate * 1e6)
    lost_us = min(lost_us, spent[State.RUNNING.value])
    spent[State.RUNNING.value] -= lost_us
    ledger = {f"{state.lower()}_s": _seconds(spent_us) for state, spent_us in spent.items()}
    return ledger | {"lost_s": _seconds(lost_us)}


def _goodput(ledger: Mapping[str, float]) -> float | None:
    """Productive time over submit → end minus time queued; None before anything has run."""
    placed_s = sum(ledger.values()) - ledger["queued_s"]
    if placed_s <= 0 or ledger["running_s"] + ledger["lost_s"] <= 0:
        return None
    return round(ledger["running_s"] / placed_s, 4)


def _attempts(attempts: Sequence[AttemptRow], restarts: Sequence[RestartRow]) -> list[Document]:
    by_attempt: dict[int, list[Document]] = {row.attempt: [] for row in attempts}
    for restart in restarts:
        by_attempt.setdefault(restart.attempt, []).append(_restart(restart))
    rows = {row.attempt: row for row in attempts}
    documents = []
    for number, inside in sorted(by_attempt.items()):
        row = rows.get(number)
        documents.append(
            {
                "attempt": number,
                "started": format_time(row.started_us if row else None),
                "ended": format_time(row.ended_us if row else None),
                "node": row.node if row else None,
                "reason": row.reason if row else None,
                "outcome": row.outcome if row else None,
                "restarts": inside,
            }
        )
    return documents


def _restart(row: RestartRow) -> Document:
    return {
        "restart": row.restart,
        "started": format_time(row.started_us),
        "ended": format_time(row.ended_us),
        "cause": row.cause,
        "evidence": row.evidence,
        "decision": row.decision,
        "charged_to": row.charged_to,
        "restored_step": row.restored_step,
        "restored_from": row.restored_from,
        "lost_steps": row.lost_steps,
        "recovery_s": _seconds(row.recovery_us),
        "exit_code": row.exit_code,
        "signal": row.signal,
    }


def _checkpoint(row: CheckpointRow) -> Document:
    return {
        "generation": row.generation,
        "step": row.step,
        "epoch": row.epoch,
        "time": format_time(row.committed_us),
        "size_bytes": row.size_bytes,
        "duration_s": _seconds(row.duration_us),
        "state": row.state,
        "reason": row.reason,
    }


def _counts(charges: Mapping[str, Any] | None) -> dict[str, int]:
    """The numbers of the restart policy's charges, without the marks it keeps for itself."""
    spent = {**Charges().to_dict(), **(charges or {})}
    return {name: value for name, value in spent.items() if isinstance(value, int)}


def _seconds(span_us: int | None) -> Any:
    return None if span_us is None else span_us / 1e6
