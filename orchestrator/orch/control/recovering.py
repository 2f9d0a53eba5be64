"""Jobs that were read back from storage get their rows in the store again (`orch recover`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from orch.control import lifecycle
from orch.control.configs import budgets_of
from orch.control.jobrecord import StoredJob, next_attempt
from orch.control.lifecycle_common import books
from orch.control.rows import NewJob
from orch.control.secrets import SecretBox
from orch.control.store import Store, Transaction, now_us
from orch.model.errors import NoSuchJob, WrongUse
from orch.model.events import BlockedBecause, Submitted, Unblocked, event_to_dict
from orch.model.spec import JobSpec
from orch.model.states import JobState, State
from orch_policies import goodput
from orch_policies.restart import History

if TYPE_CHECKING:
    from orch.model.events import Event


@dataclass(frozen=True)
class Recovery:
    """A job as it is written down, with what is told about it."""

    state: JobState
    row: NewJob
    told: tuple[tuple[Event, str], ...]
    """Events, each with its decision."""


def why_secrets_are_missing(job: str, names: tuple[str, ...]) -> str:
    return (
        f"the values of its secrets ({', '.join(names)}) were lost with the store: export them and run"
        f" `orch secrets {job}`"
    )


def rebuilt(stored: StoredJob, spec: JobSpec, url: str, at_us: int) -> Recovery:
    """The job as it goes on, or as it ended. Charges to its budgets are forgotten: nobody has them any more."""
    event = Submitted(
        job=stored.job,
        workers=spec.resources.workers,
        seed=stored.seed,
        budgets=budgets_of(spec),
        unprotected=stored.unprotected,
    )
    began_us = min(stored.submitted_us, at_us)
    state, _ = lifecycle.begin(event, began_us)
    state = _with_step(state, stored)
    row = NewJob(
        name=spec.job_name,
        spec=spec.model_dump(mode="json"),
        priority=spec.priority,
        code=stored.code,
        sealed_secrets={},
        notes=[{"t_us": at_us, "text": _sentence(stored, url)}],
    )
    if stored.end is not None:
        ended_us = max(began_us, int(stored.end["ended_us"]))
        state = replace(
            _older(state, ended_us),
            attempt=stored.attempt,
            state=State(stored.end["state"]),
            reason=stored.end["reason"],
            exit_code=stored.end["exit_code"],
            ended_us=ended_us,
        )
        return Recovery(state, row, ((event, f"read back from {url}: it was over already"),))
    went_on = _sentence(stored, url)
    state = replace(_older(state, at_us), attempt=next_attempt(stored) - 1, reason=went_on)
    told: list[tuple[Event, str]] = [(event, went_on)]
    if spec.secrets:
        blocked = BlockedBecause(reason=why_secrets_are_missing(stored.job, spec.secrets))
        state, _ = lifecycle.advance(state, blocked, at_us)
        told.append((blocked, blocked.reason))
    return Recovery(state, row, tuple(told))


def _sentence(stored: StoredJob, url: str) -> str:
    if stored.end is not None:
        return f"read back from {url}; it was over already"
    where = f"goes on after step {stored.step}" if stored.step is not None else "starts from nothing"
    if stored.step is None and stored.committed:
        where = "has checkpoints, and none that can be restored"
    return f"read back from {url}; {where}, as attempt {next_attempt(stored)}"


def _with_step(state: JobState, stored: StoredJob) -> JobState:
    """What is committed is known to the job again, so that it never starts over in silence."""
    known = [int(point["step"]) for point in stored.checkpoints]
    step = stored.step if stored.step is not None else max(known, default=None)
    if step is None:
        return state
    history = History(highest_step=step, committed_step=step)
    return replace(state, step=step, checkpoint_step=stored.step, history=history.to_dict())


def _older(state: JobState, now_us: int) -> JobState:
    """What is not known of the time since its submit counts as waiting."""
    span_us = now_us - state.seen_us
    return replace(
        state,
        seen_us=now_us,
        since_us=now_us,
        spent_us={State.QUEUED.value: span_us} if span_us else {},
        books=goodput.passed(books(state), State.QUEUED, span_us).to_dict(),
    )


def put_back(
    store: Store,
    stored: StoredJob,
    spec: JobSpec,
    url: str,
    here: Callable[[Event, str], None] = lambda *_: None,
) -> str:
    """Writes it down, once: "resumed", "blocked", "ended", or "known" where the store has the job already.

    `here` is told of each event before its transaction, inside and after it (`orch.control.killpoints`).
    """
    try:
        store.state(stored.job)
    except NoSuchJob:
        found = rebuilt(stored, spec, url, now_us())
    else:
        return "known"
    for event, _ in found.told:
        here(event, "before")
    with store.transaction() as transaction:
        transaction.insert_job(found.row, found.state)
        for event, decision in found.told:
            whence = {"recovered_from": url} if isinstance(event, Submitted) else {}
            document = {**event_to_dict(event), **whence}
            transaction.append_event(stored.job, document, t_us=found.state.seen_us, decision=decision)
        for point in stored.checkpoints:
            _put_checkpoint(transaction, stored.job, point)
        for event, _ in found.told:
            here(event, "inside")
    for event, _ in found.told:
        here(event, "after")
    if found.state.ended:
        return "ended"
    return "blocked" if found.state.state is State.BLOCKED else "resumed"


def _put_checkpoint(transaction: Transaction, job: str, point: Mapping[str, Any]) -> None:
    values = {name: point[name] for name in ("committed_us", "epoch", "size_bytes")}
    quarantined = point["quarantined"]
    transaction.put_checkpoint(
        job,
        point["generation"],
        point["step"],
        **values,
        state="committed" if quarantined is None else "quarantined",
        reason=quarantined,
    )


def set_secrets(
    store: Store, box: SecretBox, job: str, values: Mapping[str, str], apply: Callable[[str, Event], None]
) -> None:
    """Seals new values for all of the job's secrets; a job that was blocked goes on."""
    spec = JobSpec.model_validate(store.job(job).spec)
    if set(values) != set(spec.secrets):
        named = ", ".join(spec.secrets) or "none"
        raise WrongUse(f"job {job} has these secrets: {named}; a value is needed for each, and for no other")
    sealed = box.seal(job, values)
    with store.transaction() as transaction:
        for name, value in sealed.items():
            transaction.put_secret(job, name, value)
    if store.state(job) is State.BLOCKED:
        apply(job, Unblocked(reason="its secrets were set again"))
