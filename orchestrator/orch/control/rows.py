"""What the store hands out: one frozen dataclass per kind of row. Times in microseconds UTC."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class JobRow:
    """What a list of jobs needs; short, so that long lists stay quick."""

    id: str
    name: str
    state: str
    reason: str
    priority: int
    unprotected: bool
    submitted_us: int
    started_us: int | None
    ended_us: int | None
    attempt: int
    restart: int
    exit_code: int | None
    spent_us: Mapping[str, int]
    """Where its time went: by the buckets of `orch_policies.goodput`, of older jobs by the states."""
    revision: int


@dataclass(frozen=True, kw_only=True, slots=True)
class JobDetailRow(JobRow):
    spec: Mapping[str, Any]
    code: Mapping[str, Any] | None
    error: str | None
    lifecycle: Mapping[str, Any]
    notes: Sequence[Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class AttemptRow:
    job: str
    attempt: int
    started_us: int | None = None
    ended_us: int | None = None
    node: str | None = None
    reason: str | None = None
    outcome: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class RestartRow:
    job: str
    attempt: int
    restart: int
    started_us: int | None = None
    ended_us: int | None = None
    cause: str | None = None
    evidence: str | None = None
    decision: str | None = None
    charged_to: str | None = None
    restored_step: int | None = None
    restored_from: str | None = None
    lost_steps: int | None = None
    lost_us: int | None = None
    recovery_us: int | None = None
    exit_code: int | None = None
    signal: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointRow:
    job: str
    generation: str
    step: int
    epoch: int | None = None
    committed_us: int
    size_bytes: int | None = None
    duration_us: int | None = None
    state: str = "committed"
    """committed, quarantined or deleted."""
    reason: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class EventRow:
    seq: int
    job: str
    t_us: int
    type: str
    cause: str | None
    evidence: str | None
    decision: str | None
    data: Mapping[str, Any]
    """The event as `orch.model.events.event_to_dict` wrote it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CommandRow:
    """One entry of the outbox."""

    seq: int
    job: str
    type: str
    data: Mapping[str, Any]
    created_us: int
    done_us: int | None
    tries: int
    last_error: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class ProgressRow:
    job: str
    rank: int
    generation: str
    t_us: int
    step: int | None = None
    epoch: int | None = None
    steps_per_s: float | None = None
    metrics: Mapping[str, Any]
    usage: Mapping[str, Any]
    checkpointing: Mapping[str, Any] | None = None
    """How often is saved, why, and what a save costs (`orch_workers.pacing`)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LivedRow:
    """What tells how long a job ran and how often it failed."""

    id: str
    state: str
    submitted_us: int
    spent_us: Mapping[str, int]
    lifecycle: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class NewJob:
    """What is written down when a job is submitted. Its lifecycle comes with `Transaction.save`."""

    name: str
    spec: Mapping[str, Any]
    priority: int = 0
    code: Mapping[str, Any] | None = None
    request: str | None = None
    """The submitter's own number for this submit; a second one with it is the same job."""
    sealed_secrets: Mapping[str, bytes]
    notes: Sequence[Mapping[str, Any]] = ()
