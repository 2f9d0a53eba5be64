"""A job as the lifecycle sees it: pure data. Only `orch.control.lifecycle` makes a next one."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from orch.model.generation import Generation
from orch.model.records import from_document, to_document


class State(enum.StrEnum):
    QUEUED = "QUEUED"  # waits for its gang
    STARTING = "STARTING"  # the gang is granted, no training process runs yet
    RUNNING = "RUNNING"
    RECOVERING = "RECOVERING"  # something died; until the first new step, or the start where no step is known
    STOPPING = "STOPPING"  # its end is decided, and not seen yet
    BLOCKED = "BLOCKED"  # a person must act; the reason says what
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


ENDED = frozenset({State.SUCCEEDED, State.FAILED, State.CANCELLED})
"""Over: nothing of the job is left anywhere but its checkpoints, logs and records."""

PLACED = frozenset({State.STARTING, State.RUNNING, State.RECOVERING})
"""Has a gang that was granted, and agents in it."""


class AgentStatus(enum.StrEnum):
    STARTING = "starting"  # asked for, has not answered yet
    UP = "up"
    ENDED = "ended"  # its worker ended for good; the agent waits to be closed
    LOST = "lost"  # dead, and not replaced


@dataclass(frozen=True, kw_only=True, slots=True)
class AgentState:
    placed: int
    """The attempt that placed it."""
    status: AgentStatus = AgentStatus.STARTING
    node: str = ""
    node_id: str = ""
    """Ray's name of the node; several can share a machine, and each goes away by itself."""
    pid: int | None = None
    outcome: str | None = None
    started: Generation | None = None
    """Newest generation whose training process it started."""
    notice: str = ""
    """Why it leaves its place, once it was told to."""

    @property
    def alive(self) -> bool:
        return self.status in {AgentStatus.STARTING, AgentStatus.UP}


@dataclass(frozen=True, kw_only=True, slots=True)
class Ending:
    """How the job will be over once everything is seen to be gone."""

    state: State
    reason: str
    exit_code: int | None = None
    traceback: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Branch:
    """A new branch of the chain: `attempt` and those after it descend from what `generation` committed at `step`."""

    attempt: int
    generation: Generation
    step: int


@dataclass(frozen=True, kw_only=True, slots=True)
class StoryEntry:
    """One event and what became of it; the story is what an InvalidTransition shows."""

    t_us: int
    event: str
    before: State
    after: State
    decision: str


@dataclass(frozen=True, kw_only=True, slots=True)
class JobState:
    """All that decides what happens next to a job. JSON-able; times in microseconds UTC."""

    job: str
    state: State
    workers: int = 1
    seed: int = 0
    grace_s: float = 30.0
    unprotected: bool = False
    reason: str = ""
    """Why the job is in this state, for people."""

    attempt: int = 0
    restart: int = 0
    gang: int | None = None
    """The attempt whose placement group the job has, or has asked for."""
    gang_granted: bool = False
    removing: tuple[int, ...] = ()
    """Gangs that were given back and not seen to be gone yet; nothing is placed until they are."""
    not_before_us: int | None = None
    """Backoff: nothing is placed earlier."""
    agents: Mapping[int, AgentState] = field(default_factory=dict)
    """By rank; empty unless the job has a granted gang, or is ending with one."""
    cordoned: Mapping[str, int] = field(default_factory=dict)
    """Machines (Ray's node ids) that were said to go away → until when nothing is placed there."""
    lost_node: str = ""
    """The node whose loss was charged last (Ray's name of it, where known), until a training process starts: the rest
    of it is free.
    """
    down: Generation | None = None
    """Newest generation whose training process is known to have ended; its late reports change nothing."""
    ending: Ending | None = None
    stop_deadline_us: int | None = None
    """The agents were asked to stop (StopAgents); what has not stopped by then is ended."""
    closing: bool = False
    """CloseJob was issued; only Closed is waited for."""

    resumed: int | None = None
    """The first attempt after the last resume; what earlier ones left on a machine says nothing about its end."""
    resumes: int = 0
    """How often it was resumed."""
    resuming: str = ""
    """Why it leaves its place, when that is to begin anew on request: it is charged to nothing."""
    branch: Branch | None = None
    """Where the chain is to fork before anything of `branch.attempt` starts; until it has committed something."""

    budgets: Mapping[str, Any] = field(default_factory=dict)
    charges: Mapping[str, Any] = field(default_factory=dict)
    history: Mapping[str, Any] = field(default_factory=dict)
    merged: tuple[Generation, ...] = ()
    """Restarts of the leader whose charge is in `charges`, newest last."""

    step: int | None = None
    """Highest step ever reported, done or done again."""
    restored_step: int | None = None
    """What the present generation restored; None: nothing."""
    checkpoint_step: int | None = None

    submitted_us: int = 0
    since_us: int = 0
    """Since when the job is in this state."""
    seen_us: int = 0
    """Time of the last event; never goes back, whatever the clock does."""
    started_us: int | None = None
    """First training process."""
    ended_us: int | None = None
    spent_us: Mapping[str, int] = field(default_factory=dict)
    """State → time in it, the present one's up to the last event; sums to seen_us - submitted_us."""
    books: Mapping[str, Any] = field(default_factory=dict)
    """Where that time went, `orch_policies.goodput`'s books; the same sum."""
    inexact: str = ""
    """Why the run is no longer the one it would have been undisturbed; empty while it is."""
    exit_code: int | None = None
    traceback: str | None = None
    story: tuple[StoryEntry, ...] = ()

    @property
    def generation(self) -> Generation:
        return Generation(self.attempt, self.restart)

    @property
    def ended(self) -> bool:
        return self.state in ENDED

    def placeable(self, now_us: int) -> bool:
        """Whether a TurnCame would be acted on now: it waits, has asked for nothing, its delay is over."""
        waits = self.state is State.QUEUED and self.gang is None and not self.removing
        return waits and (self.not_before_us is None or now_us >= self.not_before_us)

    def to_dict(self) -> dict[str, Any]:
        return to_document(self)

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Self:
        """Reads what `to_dict` wrote; ValueError for anything else."""
        return from_document(cls, document)
