"""What an agent is told when it is made, and where its things are on the machine."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from orch.model.lease import LEASE_S

NODE_VARIABLE = "ORCH_NODE_FOLDER"
"""In the environment of a machine's Ray: where its agents work, instead of below the server's home."""
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - the folder below it is ours, 0700, and named by user
SOCKETS = Path("/tmp")  # noqa: S108 - likewise; a Unix socket's path may have 107 bytes


@dataclass(frozen=True, kw_only=True)
class WorkerConfig:
    """One worker's marching orders. No secret is in here: Ray stores actor arguments."""

    job_id: str
    attempt: int
    placed_attempt: int | None = None
    """The attempt that placed this agent, where it has adopted a newer one since (`attempt`); else that one."""
    rank: int = 0
    world_size: int = 1
    run: str
    env: Mapping[str, str] = field(default_factory=dict)
    secret_names: tuple[str, ...] = ()
    gpus: float = 0
    node_root: str
    logs_root: str
    storage_url: str
    storage_options: Mapping[str, Any] = field(default_factory=dict)
    unfenced: bool = False
    code_digest: str | None = None
    """Digest of the shipped workdir; None: run in `workdir` where it is (ship: never)."""
    workdir: str
    outputs: tuple[str, ...] = ()
    every_steps: int | None = None
    every_seconds: float | None = None
    every_epochs: int | None = None
    every_auto: bool = False
    """The seconds are chosen from what saves cost and how often jobs fail; the three above do not count."""
    max_overhead: float | None = None
    """Share of the run time that saves may block, 0.01 for one percent."""
    seen: Mapping[str, Any] = field(default_factory=dict)
    """What the controller has seen of failures and of this job's saves (`orch.control.failures.observed`)."""
    keep: Mapping[str, Any] = field(default_factory=dict)
    """`orch_policies.retention.Rules` in JSON form; what is left out has its default."""
    grace_s: float = 30.0
    hang: float | str = "auto"
    """`auto`, `off`, or seconds without a step."""
    heeds_notices: bool = True
    """False: cloud metadata, Ray's drain and Slurm's time limit are not watched (`restart.preemption: off`)."""
    standby: bool = True
    snapshot_every_steps: int | None = None
    memory_bytes: int | None = None
    """The job's limit for this worker; None: none."""
    drill: Mapping[str, Any] = field(default_factory=dict)
    """`{"stop_at", "kill_at"}` of a job that `orch drill` submitted."""
    lease_s: float = LEASE_S
    """How long the agent goes on without its cluster."""
    share: str = ""
    """Keeps apart what nodes that share a machine have in /dev/shm and /tmp; see `placed`."""
    files: tuple[str, ...] = ()
    """Patterns of files that the script writes as its own checkpoints; with them nothing else is kept."""
    metrics: Mapping[str, str] = field(default_factory=dict)
    """Names and the expressions that find their numbers in lines of the log."""
    python: Mapping[str, str | None] = field(default_factory=dict)
    """`{"requirements", "version"}` of the job's own Python environment; empty: that of the machine."""
    policy: Mapping[str, Any] = field(default_factory=dict)
    """`{"budgets", "charges", "history", "seed"}` of orch_policies.restart."""

    resumed: int = 0
    """The first attempt after the last `orch resume`: an end that an earlier one left here is not this one's."""
    stop: tuple[Any, ...] = ()
    """Early stopping: metric, mode, patience; none: there is no such rule."""
    start: Mapping[str, Any] = field(default_factory=dict)
    """Another job's checkpoint to begin with: url, options, generation, step, only, maps, label."""
    branch: int = 0
    """The first attempt on the branch that was asked for; what memory holds of earlier ones may lie off it."""

    @property
    def rules(self) -> dict[str, Any]:
        """What a training process is told beside when to save."""
        return {"snapshots": self.snapshot_every_steps, "stop": list(self.stop)}

    @property
    def trusted_from(self) -> int:
        """From this attempt on a chain that was left on this machine is the newest, whatever storage says."""
        return max(self.attempt - 1, self.branch)

    @property
    def placed_by(self) -> int:
        return self.attempt if self.placed_attempt is None else self.placed_attempt

    def adopting(self, attempt: int, policy: Mapping[str, Any]) -> Self:
        """As a survivor goes on when the controller has raised the attempt."""
        return replace(self, attempt=attempt, placed_attempt=self.placed_by, policy=policy)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> WorkerConfig:
        tuples = {
            name: tuple(document.get(name, ())) for name in ("secret_names", "outputs", "files", "stop")
        }
        return cls(**{**document, **tuples})

    def placed(self, environment: Mapping[str, str]) -> Self:
        """As this node has it: with NODE_VARIABLE in its environment, a working area of its own."""
        folder = environment.get(NODE_VARIABLE, "")
        if not folder:
            return self
        return replace(self, node_root=folder, share=share_of(folder))

    @property
    def paths(self) -> WorkerPaths:
        return WorkerPaths(
            self.job_id, self.rank, Path(self.node_root), Path(self.logs_root), self.attempt, self.share
        )


def share_of(folder: str) -> str:
    """The mark of a node with a working area of its own."""
    return hashlib.sha256(folder.encode()).hexdigest()[:8]


@dataclass(frozen=True)
class WorkerPaths:
    """Everything a worker keeps on its machine; nothing else is written there."""

    job_id: str
    rank: int
    node_root: Path
    logs_root: Path
    attempt: int = 0
    share: str = ""

    @property
    def _owner(self) -> str:
        return f"orch-{os.getuid()}" + (f"-{self.share}" if self.share else "")

    @property
    def job(self) -> Path:
        return self.node_root / "jobs" / self.job_id

    @property
    def state(self) -> Path:
        """Journal, guard's lock, record of the process tree."""
        return self.job / f"rank-{self.rank}"

    @property
    def guards(self) -> tuple[Path, Path]:
        """Where the guards of training process and standby keep their locks; the two take turns."""
        return self.state, self.state / "standby"

    @property
    def builds(self) -> Path:
        """Where the guard of what builds the job's Python environment keeps its lock."""
        return self.state / "environment"

    @property
    def environments(self) -> Path:
        """Of all jobs of this machine."""
        return self.node_root / "environments"

    @property
    def workdir(self) -> Path:
        return self.job / "workdir"

    @property
    def snapshots_job(self) -> Path:
        return SHARED_MEMORY / self._owner / self.job_id

    @property
    def snapshots(self) -> Path:
        return self.snapshots_job / f"rank-{self.rank}"

    @property
    def page(self) -> Path:
        return self.snapshots / "page"

    @property
    def page_fallback(self) -> Path:
        """On disk, where shared memory has no room for one more page."""
        return self.state / "page"

    @property
    def done(self) -> Path:
        """Says that the command has ended with success, before anything else is done about it."""
        return self.state / "done.json"

    @property
    def undelivered(self) -> Path:
        """Says that outputs could not be brought into storage: the working area then stays."""
        return self.job / "undelivered"

    @property
    def socket(self) -> Path:
        # The whole id does not fit, and its beginning is not its own.
        mark = hashlib.sha256(self.job_id.encode()).hexdigest()[:24]
        return SOCKETS / self._owner / f"{mark}-{self.rank}" / "agent.sock"

    @property
    def log(self) -> Path:
        return self.logs_root / self.job_id / f"attempt-{self.attempt:06d}" / f"rank-{self.rank}.log"

    def make(self) -> None:
        for folder in (self.state, self.snapshots, self.log.parent, self.socket.parent):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for shared in (self.snapshots_job.parent, self.socket.parent.parent):
            if shared.stat().st_uid != os.getuid():
                raise PermissionError(
                    f"{shared} belongs to another user; orch will not put a job's state there"
                )
