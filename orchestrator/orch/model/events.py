"""What can happen to a job. Events go into `orch.control.lifecycle.advance`; commands come out.

Each is a fact with its evidence, never a wish about the state. Two numbers tie an event to its source:

* ``attempt`` of an agent's event is the attempt that *placed* that agent (it is in the actor's name). A
  survivor that has adopted a newer attempt keeps the number it was placed with.
* ``generation`` of a training process' event is the generation that ran it.

Late, repeated and reordered events are harmless: what does not belong to the present is recorded and not
acted on.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from orch.model.generation import Generation
from orch.model.records import from_document, to_document
from orch.model.states import Branch

GRACE_S_DEFAULT = 30.0
"""How long a training process may take between SIGTERM and SIGKILL unless the job says otherwise."""

OUTCOMES = ("succeeded", "failed", "left", "stopped", "blocked")
"""How a worker ends: done; given up by the leader's restart policy; left because its place goes away (to be
placed again); ended because the controller asked (cancel); unable to go on until a person acts (nothing
restorable)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Submitted:
    """The job exists. Goes into `lifecycle.begin`, every other event into `lifecycle.advance`."""

    job: str
    workers: int = 1
    seed: int = 0
    grace_s: float = GRACE_S_DEFAULT
    budgets: Mapping[str, Any] = field(default_factory=dict)
    """`orch_policies.restart`'s budgets, in their JSON form."""
    unprotected: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class TurnCame:
    """The queue says that this job is the next to be placed. May be repeated until the job has its gang."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TurnLost:
    """Another job goes first after all; only a gang that is not granted yet is given back."""

    reason: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class GangGranted:
    """The placement group that `attempt` asked for is ready."""

    attempt: int


@dataclass(frozen=True, kw_only=True, slots=True)
class GangRemoved:
    """The placement group that `attempt` made and all agents in it are gone (answers RemoveGang)."""

    attempt: int


@dataclass(frozen=True, kw_only=True, slots=True)
class GangLost:
    """The placement group that `attempt` made went away unasked: the cluster died, or it was removed."""

    attempt: int
    evidence: str
    step: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class AgentUp:
    """The agent of `rank` answers. `attempt`: the one that placed it."""

    attempt: int
    rank: int
    node: str = ""
    node_id: str = ""
    """Ray's name of the node; several can share a machine."""
    pid: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class AgentLost:
    """The agent of `rank` is dead, and `evidence` says how that is known. "Cannot reach" is not evidence."""

    attempt: int
    rank: int
    evidence: str
    node_lost: bool = False
    step: int | None = None
    """Highest step that the worker is known to have reached, where one is known."""
    preempted: bool = False
    """Ray says that its death was announced."""
    node_state: str = ""
    """Of its machine: alive, draining, dead; empty where it is not known."""
    drain_deadline_us: int | None = None
    """Until when the machine was to be left, where that was announced."""
    silent_s: float | None = None
    """For how long nothing had been heard of it when its loss was seen."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PreemptionNoticed:
    """The worker of `rank` was told that its place goes away. It leaves by itself; WorkerEnded comes next."""

    attempt: int
    rank: int
    source: str
    """Who gave the notice: `orch_workers.preemption` names them."""
    reason: str
    """What was said, as a sentence without its full stop."""
    deadline_us: int | None = None
    """When the place is gone, as far as it is known."""
    node_id: str = ""
    """Ray's name of the machine that is not to be used until it is seen whether it goes; empty: only this job
    gives up its place."""
    leaves: bool = True
    """False: a mere warning; the worker saves and stays."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerEnded:
    """The worker of `rank` ended, with one of OUTCOMES; the agent lives on until it is closed.

    ``succeeded`` of rank 0 speaks for the gang: every rank's process has ended with success.
    """

    attempt: int
    rank: int
    outcome: str
    reason: str = ""
    exit_code: int | None = None
    traceback: str | None = None
    step: int | None = None

    def __post_init__(self) -> None:
        if self.outcome not in OUTCOMES:
            raise ValueError(f"outcome {self.outcome!r} is none of {', '.join(OUTCOMES)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class ProcessStarted:
    generation: Generation
    rank: int
    pid: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Restored:
    """The training process of `rank` loaded the state of `step`; source is ``memory`` or ``storage``."""

    generation: Generation
    step: int
    source: str
    rank: int = 0
    seconds_s: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class WarmStarted:
    """The training process, without a state of its own job, has begun with what fits of another job's checkpoint."""

    generation: Generation
    source: str
    """Whose, for people."""
    loaded: int
    """How many tensors and arguments."""
    skipped: tuple[str, ...] = ()
    """In the checkpoint, and not loaded."""
    missing: tuple[str, ...] = ()
    """In the script, and not in the checkpoint."""
    reshaped: tuple[str, ...] = ()
    """In both, with shapes that differ."""
    rank: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Recovered:
    """The first new step after a start: `step` done, `lost_steps` of the work before done twice."""

    generation: Generation
    step: int
    recovery_s: float | None = None
    lost_steps: int = 0
    lost_s: float | None = None
    """How long the lost steps had taken, where that is known."""
    standby: bool = False
    """Whether a standby process took over; else the command was started afresh."""
    breakdown: Mapping[str, float] | None = None
    """The parts of `recovery_s`, in order: ``detected_s`` (seen, decided, journalled, and a pause where one was
    due), ``started_s`` (the new process, or the standby, has begun), ``set_up_s`` (its imports and set-up),
    ``restored_s``, ``first_step_s``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Progressed:
    """The newest step, reported as often as the controller likes; the first one after a start counts."""

    generation: Generation
    step: int
    epoch: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ProcessExited:
    """A training process ended, and the leader has not yet said what follows. Has a code or a signal."""

    generation: Generation
    rank: int
    code: int | None = None
    signal: int | None = None
    step: int | None = None
    evidence: str = ""
    """How that was seen."""
    cause: str = ""
    """A name of `orch_policies.classification.CAUSES`."""
    what: str = ""
    """What happened, as a sentence."""
    advice: str = ""
    """What a person can do about it."""
    detect_s: float | None = None
    """From the end (of a hang: from the last step) until it was seen."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RestartDecided:
    """The leader journalled a restart. `generation` is the new one; `charge_to` a budget's name or None."""

    generation: Generation
    reason: str
    charge_to: str | None
    delay_s: float = 0.0
    step: int | None = None
    """Highest step known before the failure."""
    failure: Mapping[str, Any] | None = None
    """The failure that was decided about, in `orch_policies.restart`'s JSON form."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointCommitted:
    """The step manifest is in storage."""

    generation: Generation
    step: int
    size_bytes: int | None = None
    seconds_s: float | None = None
    blocked_s: float | None = None
    """How long training waited for its snapshot."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CancelRequested:
    """now: without the grace period."""

    now: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class PreemptRequested:
    """Somebody wants the job's place: it saves, leaves within `grace_s` and is placed again."""

    grace_s: float
    reason: str = "asked for with `orch preempt`"


@dataclass(frozen=True, kw_only=True, slots=True)
class StopOverdue:
    """StopAgents' deadline has passed. Sent in any case; the lifecycle knows whether anybody is awaited."""

    attempt: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Closed:
    """Agents, processes, gangs (and snapshots, if to be swept) were seen to be gone (answers CloseJob)."""

    attempt: int
    swept: bool = True
    """The command's `sweep`: snapshots and working areas are gone as well."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ResumeRequested:
    """A person wants the job to run again: a new attempt under the same id, with fresh budgets.

    One that has a place saves, leaves it within `grace_s` and is placed again.
    """

    at_step: int | None = None
    """Not from the newest restore point, but from this one, which `at_generation` has committed."""
    at_generation: Generation | None = None
    budgets: Mapping[str, Any] | None = None
    """New ones, in place of those that it was submitted with."""
    changed: tuple[str, ...] = ()
    """Keys of the job that have another value from now on."""
    code: str | None = None
    """What its new code is, for people."""
    grace_s: float = GRACE_S_DEFAULT


@dataclass(frozen=True, kw_only=True, slots=True)
class Adopted:
    """What a controller that has just started found of the job in the cluster.

    `found` maps each rank with a live agent to the attempt that placed it; `gang` is the attempt whose
    placement group exists (None: none does). A rank that is missing must have been seen dead, not merely
    unreachable.
    """

    found: Mapping[int, int] = field(default_factory=dict)
    gang: int | None = None
    evidence: str = "found so by the new controller"


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockedBecause:
    """The job cannot go on until a person acts; `reason` says what to do."""

    reason: str
    branch: Branch | None = None
    """One that was asked for and cannot begin, because its checkpoint is gone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Unblocked:
    """What blocked the job was put right; it waits in the queue again, its budgets as they were."""

    reason: str = ""


Event = (
    Submitted
    | TurnCame
    | TurnLost
    | GangGranted
    | GangRemoved
    | GangLost
    | AgentUp
    | AgentLost
    | PreemptionNoticed
    | WorkerEnded
    | ProcessStarted
    | Restored
    | WarmStarted
    | Recovered
    | Progressed
    | ProcessExited
    | RestartDecided
    | CheckpointCommitted
    | CancelRequested
    | PreemptRequested
    | StopOverdue
    | Closed
    | ResumeRequested
    | Adopted
    | BlockedBecause
    | Unblocked
)

EVENTS: Mapping[str, type[Event]] = {kind.__name__: kind for kind in Event.__args__}


def event_to_dict(event: Event) -> dict[str, Any]:
    """``{"type": class name, …fields}``, JSON only."""
    return {"type": type(event).__name__, **to_document(event)}


def event_from_dict(document: Mapping[str, Any]) -> Event:
    """Reads what `event_to_dict` wrote; ValueError for anything else."""
    body = dict(document)
    name = body.pop("type", None)
    if name not in EVENTS:
        raise ValueError(f"{name!r} is no event; there are {', '.join(EVENTS)}")
    return from_document(EVENTS[name], body)
