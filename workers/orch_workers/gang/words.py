"""What the agents of a gang say to each other: reports to the leader, orders from it. JSON, whole each time.

Every message is the sender's whole present state, not a change of it. So a lost one is mended by the next, one that
comes twice or late changes nothing (`number` rises), and a leader that has just been replaced knows all that it needs
when everybody has reported once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from orch.model.generation import Generation
from orch.model.records import from_document, to_document
from orch_policies.classification import Failure

Say = Callable[[int, Mapping[str, Any]], None]
"""Sends a message to the agent of a rank; returns at once, and may lose it."""

SETTING_UP, IDLE, UP, OVER = "setting up", "idle", "up", "over"
"""Phases of a rank: its code and storage are being looked for; no process of it lives; one does; its worker has ended
for good."""

SUCCEEDED, FAILED, LEFT, KILLED = "succeeded", "failed", "left", "killed"
"""How a process ended: done; by itself or by its agent's judgement; because it was told to leave; because the leader
ordered it, which says nothing about it."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """A state of the gang: what all ranks saved at one step of one generation."""

    generation: Generation
    step: int

    def __str__(self) -> str:
        return f"step {self.step} of {self.generation}"


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a rank is."""

    node: str
    """Ranks with the same one share a machine, its working folder and its shared memory."""
    address: str
    devices: str | None = None
    """Its CUDA_VISIBLE_DEVICES; None where it was granted no GPU."""


@dataclass(frozen=True, kw_only=True)
class End:
    """How the process of one generation ended."""

    generation: Generation
    how: str
    at_us: int = 0
    code: int | None = None
    signal: int | None = None
    step: int | None = None
    failure: Mapping[str, Any] | None = None
    """`orch_policies.classification.Failure` in JSON form, classified by the agent that has the evidence."""
    what: str = ""
    advice: str = ""
    evidence: str = ""
    traceback: str | None = None
    error: str | None = None
    stretch: Mapping[str, Any] | None = None
    """Where its loss was no number (`orch_workers.numbers.Stretch` in JSON form)."""

    def classified(self) -> Failure:
        return Failure("process_exit") if self.failure is None else Failure.from_dict(dict(self.failure))


@dataclass(frozen=True, kw_only=True)
class Farewell:
    """Somebody told this worker to end."""

    outcome: str
    reason: str = ""
    left_s: float = 0.0
    """Time its process may still use, as of this report."""


@dataclass(frozen=True, kw_only=True)
class Report:
    rank: int
    attempt: int
    placed: int
    """The attempt that placed this agent: tells it from the one before it and after it."""
    number: int
    heard: int = 0
    """Number of the newest order that it acts by."""
    place: Place
    port: int = 0
    """One that is free on its machine, for its process in the next start; another one after every start."""
    phase: str
    generation: Generation
    """Newest whose process it started."""
    end: End | None = None
    """Of that process, once nothing of it is left."""
    holds: tuple[Point, ...] = ()
    """Whole snapshots in this machine's memory."""
    written: tuple[Point, ...] = ()
    """Parts that this agent has brought into storage, the newest few."""
    chain: Mapping[str, Any] | None = None
    """The newest chain that lies beside its snapshots (`checkpoint.chain`'s JSON form)."""
    prepared: int = 0
    """Newest proposal that it can restore."""
    refused: int = 0
    """Newest proposal that it cannot, and why."""
    why: str = ""
    listens: bool = False
    """Its process has said hello, and looks at the page at every step."""
    step: int = 0
    step_s: float | None = None
    """How long a step takes here."""
    waits: bool = False
    """Its training stands still because storage is slow."""
    wants_save: int = 0
    """How often it was told to save soon (a warning that its machine may go)."""
    placed_word: int = 0
    """Newest save that its process will surely make, at the very step."""
    passed_word: int = 0
    """Newest save that came too late: its process may have been past that step."""
    hang: Mapping[str, Any] | None = None
    """Failure in JSON form: no step for too long, and its stacks are in its log."""
    farewell: Farewell | None = None
    outcome: str = ""
    """Of its worker, once it is over."""

    def to_dict(self) -> dict[str, Any]:
        return to_document(self)

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Report:
        return from_document(cls, _known(cls, document))


@dataclass(frozen=True, kw_only=True)
class Seat:
    """One rank's place in one start of the gang."""

    local_rank: int
    local_world_size: int
    devices: str | None = None


@dataclass(frozen=True, kw_only=True)
class Start:
    """One start of the whole gang: a new generation with a meeting place that no process of an older one knows."""

    generation: Generation
    master_addr: str
    master_port: int
    seats: tuple[Seat, ...]
    """By rank."""
    peers: tuple[str, ...] = ()
    """By rank: address and port for servers of the processes' own, as in TF_CONFIG."""


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """What the processes of `generation` should begin with. `point` None: with nothing."""

    number: int
    generation: Generation
    point: Point | None
    chain: Mapping[str, Any]
    """Of `generation`, if this is agreed on."""


@dataclass(frozen=True, kw_only=True)
class Rollback:
    """What was saved in this stretch is never restored, and the data of its steps is left out by `generation`."""

    generation: Generation
    good_step: int
    bad_step: int
    until_step: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class Save:
    number: int
    step: int
    hold: bool = False
    """Before all leave: a process that has saved it waits there to be told whether that is the step."""


@dataclass(frozen=True, kw_only=True)
class Leave:
    """Everybody leaves at `step` (0: at once), and has `left_s` for it as of this order."""

    step: int
    left_s: float
    reason: str


@dataclass(frozen=True, kw_only=True)
class Order:
    attempt: int
    placed: int
    """The attempt that placed the leader."""
    number: int = 0
    start: Start | None = None
    end: Generation | None = None
    """Processes of this generation and of older ones are to be ended."""
    proposal: Proposal | None = None
    rollback: Rollback | None = None
    """The newest; nothing is started before every rank has done it."""
    settled: int = 0
    """The proposal that every rank can restore: processes may load it."""
    save: Save | None = None
    leave: Leave | None = None
    finish: bool = False
    """Every process has ended with success: bring home what is to be kept, then the worker is over."""
    committed: Point | None = None
    waits: bool = False
    """Some rank waits for storage: that no step comes is no hang."""

    def to_dict(self) -> dict[str, Any]:
        return to_document(self)

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Order:
        return from_document(cls, _known(cls, document))


def _known(kind: Any, document: Mapping[str, Any]) -> dict[str, Any]:
    """An agent that was placed by a newer orch may say more than this one understands."""
    names = {one.name for one in fields(kind)}
    return {name: value for name, value in document.items() if name in names}
