"""What a worker tells between two events: its newest step, what it uses, sentences for people."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from orch.control.rows import ProgressRow
from orch.control.store import Store, now_us

if TYPE_CHECKING:
    from orch.model.states import JobState

UNAWARE_AFTER_S = 60.0
"""A training process that has not said hello for so long keeps its state nowhere: UNPROTECTED."""


def write_progress(store: Store, job: str, rank: int, told: dict[str, Any]) -> JobState:
    """Writes it down; returns the job as it was before."""
    row = ProgressRow(
        job=job,
        rank=rank,
        generation=told["generation"],
        t_us=now_us(),
        step=told["step"],
        epoch=told["epoch"],
        steps_per_s=told["steps_per_s"],
        metrics=told["metrics"],
        usage=told["usage"],
        checkpointing=told.get("checkpointing"),
    )
    state = store.lifecycle(job)
    aware = told["aware"]
    silent = state.started_us is not None and now_us() - state.started_us > UNAWARE_AFTER_S * 1e6
    with store.transaction() as transaction:
        transaction.put_progress(row)
        if (aware and state.unprotected) or (silent and not aware and not state.unprotected):
            transaction.save(replace(transaction.lifecycle(job), unprotected=not aware))
        known = {note["text"] for note in store.job(job).notes}
        for note in told["notes"]:
            if note not in known:
                transaction.add_note(job, note, t_us=now_us())
    return state
