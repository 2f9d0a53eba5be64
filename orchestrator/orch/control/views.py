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
    ProgressRow,
    RestartRow,
)
from orch.control.store import Store
from orch.model.states import ENDED, State
from orch_policies import goodput
from orch_policies.restart import Charges

__all__ = [
    "event_document",
    "format_time",
    "job_detail",
    "job_events",
    "job_list",
    "json_safe",
    "ledger",
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
    progress = store.progress([job]).get(job)
    lifecycle = row.lifecycle
    return summary | {
        "flags": [*summary["flags"], *(["INEXACT"] if lifecycle.get("inexact") else [])],
        "reason": row.reason,
        "ledger": {f"{name}_s": spent_us / 1e6 for name, spent_us in ledger(row, now_us).items()},
        "attempts": _attempts(store.attempts(job), store.restarts(job)),
        "checkpoints": [_checkpoint(checkpoint) for checkpoint in store.checkpoints(job)],
        "charges": _counts(lifecycle.get("charges")),
        "budgets": json_safe(lifecycle.get("budgets") or {}),
        "usage": json_safe(progress.usage) if progress else {},
        "checkpointing": json_safe(progress.checkpointing) if progress else None,
        "spec": json_safe(row.spec),
        "code": json_safe(row.code),
        "exit_code": row.exit_code,
        "error": row.error,
        "resumes": lifecycle.get("resumes") or 0,
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
    starts = store.start_counts(ids)
    return [
        _summary(
            row,
            progress.get(row.id),
            checkpoints.get(row.id),
            starts=starts.get(row.id, 0),
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
        "goodput": _rounded(goodput.goodput(ledger(row, now_us))),
    }


def ledger(row: JobRow, now_us: int) -> dict[str, int]:
    """Where the time went, by bucket; the buckets sum to submit → end (or now)."""
    us: dict[str, int] = dict.fromkeys(goodput.BUCKETS, 0)
    of_states = any(name not in us for name in row.spent_us)
    us |= goodput.Books.of_states(row.spent_us).us if of_states else row.spent_us
    end_us = row.ended_us if row.ended_us is not None else now_us
    # What has passed since the last event was spent in the present state; what came after the end is no part of it.
    bucket = goodput.bucket_of(State(row.state))
    us[bucket] = max(0, us[bucket] + max(0, end_us - row.submitted_us) - sum(us.values()))
    return us


def _rounded(share: float | None) -> float | None:
    return None if share is None else round(share, 4)


def _attempts(attempts: Sequence[AttemptRow], restarts: Sequence[RestartRow]) -> list[Document]:
    by_attempt: dict[int, list[Document]] = {row.attempt: [] for row in attempts}
    begun = [
        row for row in restarts if row.attempt in by_attempt
    ]  # what the next one is charged to is known before
    for before, restart in zip((None, *begun), begun, strict=False):
        by_attempt[restart.attempt].append(_restart(restart, before))
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


def _restart(row: RestartRow, before: RestartRow | None) -> Document:
    """`seen`: how the end of the start before was seen, which made this one necessary."""
    seen = before.evidence if before is not None else None
    return {
        "restart": row.restart,
        "started": format_time(row.started_us),
        "ended": format_time(row.ended_us),
        "cause": row.cause,
        "seen": seen or (row.evidence if row.ended_us is None else None),
        "evidence": row.evidence,
        "decision": row.decision,
        "charged_to": row.charged_to,
        "restored_step": row.restored_step,
        "restored_from": row.restored_from,
        "lost_steps": row.lost_steps,
        "lost_s": _seconds(row.lost_us),
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
