"""From a job's spec to what one agent is told and what its bundle asks Ray for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orch.control.rows import JobDetailRow
from orch.model.commands import StartAgents
from orch.model.lease import LEASE_S
from orch.model.spec import Every, JobSpec, Keep, StartFrom, Stop
from orch.model.units import UNLIMITED
from orch_policies.retention import Best, Rules
from orch_workers.config import WorkerConfig


def bundle_of(spec: Mapping[str, Any]) -> dict[str, float]:
    """The resources of one worker, as Ray names them."""
    resources = JobSpec.model_validate(spec).resources
    bundle = {"CPU": float(resources.cpus)}
    if resources.gpus:
        bundle["GPU"] = float(resources.gpus)
    if resources.memory_bytes:
        bundle["memory"] = float(resources.memory_bytes)
    return bundle


def budgets_of(spec: JobSpec) -> dict[str, Any]:
    """`orch_policies.restart.Budgets` in JSON form."""

    def limit(value: Any) -> int | None:
        return None if value == UNLIMITED else int(value)

    restart = spec.restart
    return {
        "max_failures": limit(restart.max_failures),
        "max_hangs": limit(restart.max_hangs),
        "max_preemptions": limit(restart.max_preemptions),
        "backoff_initial_s": float(restart.backoff.initial_s),
        "backoff_max_s": float(restart.backoff.max_s),
        "stop_codes": list(restart.on_exit_codes.stop),
        "restart_codes": list(restart.on_exit_codes.restart),
        "on_nan": restart.on_nan,
        "max_rollbacks": restart.max_rollbacks,
    }


def storage_of(spec: JobSpec) -> tuple[str, dict[str, Any]]:
    """URL and options; submit has put the server's default in where the job names none."""
    storage = spec.checkpoint.storage
    if storage is None:
        raise ValueError("a stored job names its storage")
    return storage.url, dict(storage.options)


def rules_of(keep: Keep, stop: Stop | None = None) -> Rules:
    """What `checkpoint.keep` asks for, as retention understands it; with early stopping, the best one as well."""
    best = None if stop is None else Best(stop.metric, stop.mode, 1)
    if keep.best is not None:
        best = Best(keep.best.metric, keep.best.mode, keep.best.count)
    return Rules(
        last=keep.last,
        every_hours=keep.every_hours,
        every_steps=keep.every_steps,
        best=best,
        min_age_s=keep.min_age_s,
    )


def start_of(start: StartFrom) -> dict[str, Any]:
    """What an agent is told of the checkpoint that its job begins with."""
    job = start.url.rstrip("/").rpartition("/")[2]
    return {
        "url": start.url,
        "options": dict(start.options),
        "generation": start.generation,
        "step": start.step,
        "only": list(start.only),
        "maps": [list(pair) for pair in start.map.items()],
        "label": f"{job}@{start.step}",
    }


def agent_config(
    detail: JobDetailRow,
    command: StartAgents,
    rank: int,
    root: Path,
    seen: Mapping[str, Any],
    *,
    lease_s: float = LEASE_S,
) -> WorkerConfig:
    """`root` is orch's home; on one machine the agents' working area lies in it. `seen`: `failures.observed`."""
    spec = JobSpec.model_validate(detail.spec)
    url, options = storage_of(spec)
    every = spec.checkpoint.every
    named = every if isinstance(every, Every) else Every()
    code = detail.code or {}
    return WorkerConfig(
        job_id=detail.id,
        attempt=command.attempt,
        rank=rank,
        world_size=spec.resources.workers,
        run=spec.run,
        env=dict(spec.env),
        secret_names=spec.secrets,
        gpus=spec.resources.gpus,
        node_root=str(root / "node"),
        logs_root=str(root / "jobs"),
        storage_url=url,
        storage_options=options,
        unfenced=spec.checkpoint.unfenced,
        code_digest=code.get("digest") if spec.ship == "auto" else None,
        workdir=spec.workdir if spec.ship == "never" else "",
        outputs=spec.outputs,
        every_steps=named.steps,
        every_seconds=named.seconds,
        every_epochs=named.epochs,
        every_auto=every == "auto",
        max_overhead=spec.checkpoint.max_overhead,
        seen=seen,
        keep=rules_of(spec.checkpoint.keep, spec.stop).to_dict(),
        stop=() if spec.stop is None else (spec.stop.metric, spec.stop.mode, spec.stop.patience),
        hang=spec.restart.hang,
        heeds_notices=spec.restart.preemption == "auto",
        standby=spec.restart.standby,
        snapshot_every_steps=spec.restart.snapshot_every_steps,
        memory_bytes=spec.resources.memory_bytes,
        drill={} if spec.drill is None else spec.drill.model_dump(mode="json"),
        lease_s=lease_s,
        files=spec.checkpoint.files,
        metrics=dict(spec.metrics),
        python={} if spec.python is None else spec.python.model_dump(mode="json"),
        policy=dict(command.policy),
        resumed=command.resumed or 0,
        start={} if spec.start_from is None else start_of(spec.start_from),
        branch=0 if command.branch is None else command.branch.attempt,
    )
