"""What the store knows of how often jobs fail and what a job's saves have cost: the ground of `every: auto`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from orch.model.states import State
from orch_policies.restart import Charges

if TYPE_CHECKING:
    from orch.control.rows import LivedRow
    from orch.control.store import Store

JOBS_LOOKED_AT_MAX = 200
"""The newest jobs tell how reliable the cluster is now; older ones tell how it was. Reading them takes under 0.1 s,
once an attempt, and only for a job that asks for `every: auto`.
"""

RUNNING = ("productive", "saving", "lost", "detecting", State.RUNNING.value)
"""Where the time of a running job is booked: `orch_policies.goodput`, and the state's name in older books."""


def observed(store: Store, job: str, now_us: int, *, others: bool = True) -> dict[str, Any]:
    """For `WorkerConfig.seen`: failures and running time of `job` and of all others together (if they are asked for),
    and the cost of a save as the job's last attempt measured it.
    """
    found = {"job": _nothing(), "others": _nothing()}
    for row in store.lived(job, limit=JOBS_LOOKED_AT_MAX if others else 0):
        sums = found["job" if row.id == job else "others"]
        sums["failures"] += _failures(row)
        sums["running_s"] += _running_s(row, now_us)
    progress = store.progress([job]).get(job)
    before = (progress.checkpointing if progress else None) or {}
    return {**found, **{name: before.get(name) for name in ("blocked_s", "durable_s")}}


def _nothing() -> dict[str, Any]:
    return {"failures": 0, "running_s": 0.0}


def _failures(row: LivedRow) -> int:
    """Every one that was ever charged, those that progress has paid back since too. A planned stop is none."""
    charges = {**Charges().to_dict(), **(row.lifecycle.get("charges") or {})}
    return sum(int(charges[name]) for name in ("failures", "hangs", "preemptions", "given_back"))


def _running_s(row: LivedRow, now_us: int) -> float:
    """Time in which it could fail in the middle of its work, the present stretch included."""
    running_us = sum(row.spent_us.get(name, 0) for name in RUNNING)
    if row.state == State.RUNNING.value:
        running_us += max(0, now_us - row.submitted_us - sum(row.spent_us.values()))
    return running_us / 1e6
