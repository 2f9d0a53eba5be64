"""The life of a job as a pure state machine: a job, an event and the time in, a job and commands out.

No clock, no random source, no I/O. All transitions stand in TRANSITIONS; what is not there raises
InvalidTransition with the job's story. An event that belongs to a past attempt or generation never reaches
the table: it is recorded in the story and changes nothing (but a restart that was journalled in time is
still charged). The rules themselves are in lifecycle_placing, lifecycle_running, lifecycle_ending and
lifecycle_resuming.

The controller stores the event, the new state and the commands in one transaction, and then acts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from orch.control import lifecycle_ending as ending
from orch.control import lifecycle_leaving as going
from orch.control import lifecycle_placing as placing
from orch.control import lifecycle_resuming as resuming
from orch.control import lifecycle_running as running
from orch.control.lifecycle_common import Step, books, leaving
from orch.control.lifecycle_late import from_the_future, why_late
from orch.model import commands as cmd
from orch.model import events as ev
from orch.model.states import ENDED, PLACED, AgentStatus, JobState, State, StoryEntry
from orch_policies import goodput

if TYPE_CHECKING:
    from collections.abc import Iterable

    from orch.model.commands import Command
    from orch.model.events import Event

STORY_ENTRIES_MAX = 64
"""The newest are kept with the job; all events are in the store."""
EVENT_TEXT_CHARS_MAX = 300

Rule = Callable[[JobState, Any, int], Step]


class Transition(NamedTuple):
    rule: Rule
    to: frozenset[State]
    """Where the rule may lead; anything else is a mistake in it."""


class InvalidTransition(Exception):  # noqa: N818  DESIGN gives it this name
    """The event makes no sense for the job as it is. Nothing was changed; the message tells the story."""


def _note(job: JobState, _event: Event, _now_us: int) -> Step:
    return Step(job)


def _table(
    *rows: tuple[Iterable[State], type[Event] | tuple[type[Event], ...], Rule, Iterable[State] | None],
) -> Mapping[tuple[State, type[Event]], Transition]:
    """(states, events, rule, where it may lead; None: it stays where it is)."""
    table: dict[tuple[State, type[Event]], Transition] = {}
    for states, kinds, rule, to in rows:
        for state in states:
            for kind in kinds if isinstance(kinds, tuple) else (kinds,):
                assert (state, kind) not in table, f"two transitions for {state}, {kind.__name__}"
                table[state, kind] = Transition(rule, frozenset((state,) if to is None else to))
    return table


_Q, _S, _R, _V = State.QUEUED, State.STARTING, State.RUNNING, State.RECOVERING
_STOP, _BLOCK = State.STOPPING, State.BLOCKED
_ALL = frozenset(State)
_LIVE = PLACED | {_STOP}
_OVER = ENDED | {_BLOCK}

# fmt: off
TRANSITIONS: Mapping[tuple[State, type[Event]], Transition] = _table(
    # in            on                                 do                            leads to
    ((_Q,),         ev.TurnCame,                       placing.turn_came,            None),
    (_ALL - {_Q},   (ev.TurnCame, ev.TurnLost),        _note,                        None),
    ((_Q,),         ev.TurnLost,                       placing.turn_lost,            None),
    ((_Q,),         ev.GangGranted,                    placing.gang_granted,         (_S,)),
    ((_STOP,),      ev.GangGranted,                    _note,                        None),
    ((_Q, _STOP),   ev.GangRemoved,                    placing.gang_removed,         None),
    ((_Q,),         ev.GangLost,                       placing.gang_lost_waiting,    None),
    (PLACED,        ev.GangLost,                       placing.gang_lost,            (_Q, _STOP)),
    ((_STOP,),      ev.GangLost,                       placing.gang_lost_stopping,   None),

    (_LIVE,         ev.AgentUp,                        running.agent_up,             None),
    (PLACED,        ev.AgentLost,                      running.agent_lost,           PLACED | {_Q, _STOP}),
    ((_STOP,),      ev.AgentLost,                      running.agent_lost_stopping,  None),
    (_LIVE,         ev.PreemptionNoticed,              going.noticed,                None),
    (PLACED,        ev.PreemptRequested,               going.requested,              PLACED | {_Q, _STOP}),
    (_ALL - PLACED, ev.PreemptRequested,               _note,                        None),
    (PLACED,        ev.WorkerEnded,                    running.worker_ended,         PLACED | {_Q, _STOP}),
    ((_STOP,),      ev.WorkerEnded,                    running.worker_ended_stopping, None),

    ((_S, _R),      ev.ProcessStarted,                 running.process_started,      (_S, _R)),
    ((_V,),         ev.ProcessStarted,                 running.process_started,      (_V, _R)),
    ((_STOP,),      ev.ProcessStarted,                 running.process_started,      None),
    (_LIVE,         ev.Restored,                       running.restored,             None),
    (_LIVE,         ev.WarmStarted,                    running.warm_started,         None),
    ((_S,),         (ev.Progressed, ev.Recovered),     running.progressed,           (_S, _R)),
    ((_R,),         (ev.Progressed, ev.Recovered),     running.progressed,           None),
    ((_V,),         (ev.Progressed, ev.Recovered),     running.progressed,           (_V, _R)),
    ((_STOP,),      (ev.Progressed, ev.Recovered),     running.progressed,           None),
    ((_S,),         ev.ProcessExited,                  running.process_exited,       (_S, _V)),
    ((_R,),         ev.ProcessExited,                  running.process_exited,       (_R, _V)),
    ((_V, _STOP),   ev.ProcessExited,                  running.process_exited,       None),
    ((_S,),         ev.RestartDecided,                 running.restart_decided,      (_S, _V)),
    ((_R,),         ev.RestartDecided,                 running.restart_decided,      (_R, _V)),
    ((_V, _STOP),   ev.RestartDecided,                 running.restart_decided,      None),
    (_LIVE | {_Q},  ev.CheckpointCommitted,            running.checkpoint_committed, None),

    ((_Q, _BLOCK),  ev.CancelRequested,                ending.cancel_waiting,        (_STOP,)),
    (PLACED,        ev.CancelRequested,                ending.cancel_placed,         (_STOP,)),
    ((_STOP,),      ev.CancelRequested,                ending.cancel_stopping,       None),
    (ENDED,         ev.CancelRequested,                _note,                        None),
    (PLACED,        ev.StopOverdue,                    running.leave_overdue,        (_Q, _STOP)),
    ((_STOP,),      ev.StopOverdue,                    ending.stop_overdue,          None),
    ((_STOP,),      ev.Closed,                         ending.closed,                ENDED | {_BLOCK}),

    ((_Q,),         ev.BlockedBecause,                 ending.block_waiting,         (_BLOCK, _STOP)),
    (PLACED,        ev.BlockedBecause,                 ending.block_placed,          (_STOP,)),
    ((_BLOCK,),     ev.BlockedBecause,                 ending.block_again,           None),
    (ENDED | {_STOP}, ev.BlockedBecause,               _note,                        None),
    ((_BLOCK,),     ev.Unblocked,                      ending.unblocked,             (_Q,)),
    (_ALL - {_BLOCK}, ev.Unblocked,                    _note,                        None),
    (_OVER | {_Q},  ev.ResumeRequested,                resuming.resume,              (_Q,)),
    (PLACED,        ev.ResumeRequested,                resuming.resume_placed,       PLACED | {_Q}),

    (_OVER | {_Q},  ev.Adopted,                        placing.adopted_waiting,      None),
    (PLACED,        ev.Adopted,                        running.adopted,              PLACED | {_Q, _STOP}),
    ((_STOP,),      ev.Adopted,                        placing.adopted_stopping,     None),
)
# fmt: on


def begin(event: ev.Submitted, now_us: int) -> tuple[JobState, list[Command]]:
    """The job that was submitted, waiting for its turn."""
    job = JobState(
        job=event.job,
        state=State.QUEUED,
        workers=event.workers,
        seed=event.seed,
        grace_s=event.grace_s,
        budgets=dict(event.budgets),
        unprotected=event.unprotected,
        reason="waits for its turn",
        submitted_us=now_us,
        since_us=now_us,
        seen_us=now_us,
    )
    return _told(job, job, event, now_us, "waits for its turn"), []


def advance(job: JobState, event: Event, now_us: int) -> tuple[JobState, list[Command]]:
    """The job after `event`, and what is to be done; `job.story[-1].decision` says why.

    InvalidTransition if the event cannot be, neither now nor as a late one.
    """
    if from_the_future(job, event):
        raise _invalid(job, event, "it names an attempt that was never made")
    late = why_late(job, event)
    if late is not None:
        after = running.merge_late(job, event) if isinstance(event, ev.RestartDecided) else job
        return _told(job, after, event, now_us, f"ignored: {late}", late=True), []
    transition = TRANSITIONS.get((job.state, type(event)))
    if transition is None:
        raise _invalid(job, event, "no transition is defined for it")
    step = transition.rule(job, event, max(now_us, job.seen_us))
    if step.job.state not in transition.to:
        raise _invalid(job, event, f"its rule leads to {step.job.state}, which the table does not allow")
    commands = list(step.commands)
    if step.job.ended and not job.ended:
        commands.append(cmd.RecordEnd(attempt=step.job.attempt))
    return _told(job, step.job, event, now_us, step.decision), commands


def still_wanted(job: JobState, command: Command) -> bool:
    """Whether `command`, issued earlier, is still to be carried out."""
    match command:
        case cmd.RequestGang():
            return job.state is State.QUEUED and job.gang == command.attempt
        case cmd.StartAgents():
            agents = [job.agents.get(rank) for rank in command.ranks]
            wanted = any(
                agent is not None and agent.placed == command.attempt and agent.status is AgentStatus.STARTING
                for agent in agents
            )
            placed = job.state in PLACED and job.gang == command.gang_attempt
            return wanted and placed and not leaving(job)
        case cmd.RaiseAttempt():
            return job.state in PLACED and job.attempt == command.attempt
        case cmd.StopAgents():
            return job.stop_deadline_us is not None and not job.closing and job.attempt == command.attempt
        case cmd.CloseJob():
            # Were it carried out late, it would end a job that was resumed meanwhile.
            return job.closing and job.attempt == command.attempt
        case cmd.RemoveGang():
            # Once it was seen to be gone, a repetition could only hit what was placed since.
            return command.attempt in job.removing or job.ended or job.state is State.BLOCKED
        case cmd.RecordEnd():
            return job.ended and job.attempt == command.attempt
        case cmd.RecordResume():
            return job.resumes == command.number
        case cmd.KillAgents():
            return True


def _told(
    before: JobState, after: JobState, event: Event, now_us: int, decision: str, *, late: bool = False
) -> JobState:
    """`after` with its times and its story; both are kept here alone, so no rule can forget them."""
    now_us = max(now_us, before.seen_us)
    spent = dict(before.spent_us)
    if now_us > before.seen_us:
        spent[before.state.value] = spent.get(before.state.value, 0) + now_us - before.seen_us
    accounts = goodput.passed(books(before), before.state, now_us - before.seen_us)
    if not late:
        accounts = goodput.told(accounts, event, before.state)
    entry = StoryEntry(
        t_us=now_us, event=_text(event), before=before.state, after=after.state, decision=decision
    )
    story = before.story
    if story and _same_kind(story[-1], entry):
        story = story[:-1]  # a thousand reports of progress would drive everything else out
    return replace(
        after,
        seen_us=now_us,
        since_us=now_us if after.state is not before.state else before.since_us,
        spent_us=spent,
        books=accounts.to_dict(),
        story=(*story, entry)[-STORY_ENTRIES_MAX:],
    )


def _same_kind(one: StoryEntry, other: StoryEntry) -> bool:
    unchanged = one.before is one.after is other.before is other.after
    return (
        unchanged
        and one.event.partition("(")[0] == other.event.partition("(")[0]
        and one.decision == other.decision
    )


def _text(event: Event) -> str:
    """``AgentLost(attempt=1, rank=0, …)``: what differs from the default."""
    parts = [
        f"{field.name}={getattr(event, field.name)}"
        for field in fields(event)
        if field.default is MISSING or getattr(event, field.name) != field.default
    ]
    return f"{type(event).__name__}({', '.join(parts)})"[:EVENT_TEXT_CHARS_MAX]


def _invalid(job: JobState, event: Event, why: str) -> InvalidTransition:
    lines = [
        f"job {job.job} is {job.state} in generation {job.generation} and cannot take {_text(event)}: {why}.",
        "Its story, newest last:",
        *story_lines(job),
    ]
    return InvalidTransition("\n".join(lines))


def story_lines(job: JobState) -> list[str]:
    """The story for people: seconds since submission, event, states, decision."""
    lines = []
    for entry in job.story:
        t_s = (entry.t_us - job.submitted_us) / 1_000_000
        to = entry.after if entry.before is entry.after else f"{entry.before} → {entry.after}"
        lines.append(f"{t_s:10.3f}s  {entry.event}  [{to}]  {entry.decision}")
    return lines
