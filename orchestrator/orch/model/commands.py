"""What the controller is to do for a job. Commands come out of `orch.control.lifecycle.advance`.

They are stored in the same transaction as the state that caused them and carried out afterwards; every one
can be repeated, after a crash or for no reason, with the same effect. A command may have become pointless by
the time it is carried out (the job was cancelled meanwhile): `lifecycle.still_wanted(job, command)` says so,
and is asked right before. Those of one job are carried out one after the other, in the order of their
issue; only a StartAgents that has to wait for its time lets later ones pass.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from orch.model.records import from_document, to_document
from orch.model.states import Branch


@dataclass(frozen=True, kw_only=True, slots=True)
class RequestGang:
    """Create the placement group of `attempt`, named by job and attempt; report GangGranted when ready."""

    attempt: int


@dataclass(frozen=True, kw_only=True, slots=True)
class RemoveGang:
    """End all agents in the placement group that `attempt` made and remove it; report GangRemoved once seen.

    Snapshots stay where they are: the next agent on that machine adopts them. Pointless once seen to be gone.
    """

    attempt: int


@dataclass(frozen=True, kw_only=True, slots=True)
class StartAgents:
    """Start the agents of `ranks`, named by job, attempt and rank, in the gang that `gang_attempt` made.

    Report AgentUp for each, or AgentLost. Not before `not_before_us` (microseconds UTC; None: at once).
    """

    attempt: int
    ranks: tuple[int, ...]
    gang_attempt: int
    not_before_us: int | None = None
    policy: Mapping[str, Any] = field(default_factory=dict)
    """What the leader decides restarts with, `orch_policies.restart`'s: budgets, charges, history, seed."""
    resumed: int | None = None
    """The first attempt after the last resume: what earlier ones left on the machine is not this one's end."""
    branch: Branch | None = None
    """Written down in storage before any agent starts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RaiseAttempt:
    """Tell the surviving agents of `ranks` that they belong to `attempt` now; they wait for the replaced.

    One whose training process had ended with success already begins again with the others.
    """

    attempt: int
    ranks: tuple[int, ...]
    policy: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class StopAgents:
    """Ask every agent to stop: TERM, `grace_s`, KILL.

    Each reports WorkerEnded; StopOverdue follows once `deadline_us` has passed. For a cancel, and for the
    rest of a gang that has begun to leave.
    """

    attempt: int
    grace_s: float
    deadline_us: int
    notice: str | None = None
    """Why the place is wanted, when the job is to leave it and be placed again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class KillAgents:
    """End agents that nothing expects: rank → the attempt that placed it."""

    strays: Mapping[int, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class CloseJob:
    """End every agent of the job, remove every gang of it, see that nothing is left; report Closed(attempt).

    `sweep`: also remove its snapshots and working areas on the machines (not if the job may go on later).
    """

    attempt: int
    sweep: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class RecordResume:
    """Write into the job's storage what it goes on with from `attempt` on, and so that it is not over.

    `number`: of the resume; of several before an attempt is made, the last one counts.
    """

    attempt: int
    number: int


@dataclass(frozen=True, kw_only=True, slots=True)
class RecordEnd:
    """Write into the job's storage that it is over since `attempt`. Issued with the end itself, whatever led to it."""

    attempt: int


Command = (
    RequestGang
    | RemoveGang
    | StartAgents
    | RaiseAttempt
    | StopAgents
    | KillAgents
    | CloseJob
    | RecordResume
    | RecordEnd
)

COMMANDS: Mapping[str, type[Command]] = {kind.__name__: kind for kind in Command.__args__}


def command_to_dict(command: Command) -> dict[str, Any]:
    """``{"type": class name, …fields}``, JSON only."""
    return {"type": type(command).__name__, **to_document(command)}


def command_from_dict(document: Mapping[str, Any]) -> Command:
    """Reads what `command_to_dict` wrote; ValueError for anything else."""
    body = dict(document)
    name = body.pop("type", None)
    if name not in COMMANDS:
        raise ValueError(f"{name!r} is no command; there are {', '.join(COMMANDS)}")
    return from_document(COMMANDS[name], body)
