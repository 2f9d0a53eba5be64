"""What is written into the store, all or nothing. A part of store.py, apart for its length."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, select

from orch.control import schema
from orch.control.clock import now_us
from orch.control.database import upsert
from orch.control.rows import NewJob, ProgressRow
from orch.model.errors import NoSuchJob
from orch.model.states import JobState

NOTES_MAX = 50
"""Newest notes kept with a job."""


class Transaction:
    """What can be written down; made by `Store.transaction` alone."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def job_of_request(self, request: str) -> str | None:
        query = select(schema.jobs.c.id).where(schema.jobs.c.request == request)
        return self.connection.execute(query).scalar_one_or_none()

    def insert_job(self, new: NewJob, state: JobState) -> None:
        """IntegrityError of SQLAlchemy if the id or the request exists already."""
        self.connection.execute(
            schema.jobs.insert().values(
                id=state.job,
                name=new.name,
                request=new.request,
                priority=new.priority,
                spec=new.spec,
                code=new.code,
                notes=list(new.notes),
                **_job_columns(state),
            )
        )
        for name, sealed in new.sealed_secrets.items():
            self.connection.execute(schema.secrets.insert().values(job=state.job, name=name, sealed=sealed))

    def lifecycle(self, job: str) -> JobState:
        """The newest state; nobody else changes it before this transaction ends. NoSuchJob if unknown."""
        return lifecycle_of(self.connection, job)

    def save(self, state: JobState) -> None:
        """Replaces the lifecycle of a job and everything that lists and tables show of it."""
        values = {**_job_columns(state), "revision": schema.jobs.c.revision + 1}
        query = schema.jobs.update().where(schema.jobs.c.id == state.job).values(**values)
        if self.connection.execute(query).rowcount == 0:
            raise no_such_job(state.job)

    def append_event(
        self,
        job: str,
        document: Mapping[str, Any],
        *,
        t_us: int,
        cause: str | None = None,
        evidence: str | None = None,
        decision: str | None = None,
    ) -> int:
        """Returns the event's number. `document`: `event_to_dict`'s, or any with a "type"."""
        if evidence is None and isinstance(document.get("evidence"), str):
            evidence = document["evidence"]
        query = schema.events.insert().values(
            job=job,
            t_us=t_us,
            type=document["type"],
            cause=cause,
            evidence=evidence,
            decision=decision,
            data=dict(document),
        )
        return int(self.connection.execute(query.returning(schema.events.c.seq)).scalar_one())

    def enqueue(self, job: str, document: Mapping[str, Any], *, t_us: int) -> int:
        """Writes a command down to be carried out; returns its number."""
        query = schema.outbox.insert().values(
            job=job, type=document["type"], data=dict(document), created_us=t_us, tries=0
        )
        return int(self.connection.execute(query.returning(schema.outbox.c.seq)).scalar_one())

    def command_done(self, seq: int, t_us: int | None = None) -> None:
        table = schema.outbox
        done_us = now_us() if t_us is None else t_us
        self.connection.execute(
            table.update().where(table.c.seq == seq, table.c.done_us.is_(None)).values(done_us=done_us)
        )

    def consume(self, job: str, attempt: int, rank: int, position: int) -> bool:
        """Whether report `position` of this agent is new; if so it is consumed when the transaction ends."""
        if position <= cursor_of(self.connection, job, attempt, rank):
            return False
        upsert(
            self.connection,
            schema.cursors,
            {"job": job, "attempt": attempt, "rank": rank},
            {"position": position},
        )
        return True

    def put_attempt(self, job: str, attempt: int, **values: Any) -> None:
        """Makes the row or changes the given columns of it; the columns are AttemptRow's."""
        upsert(self.connection, schema.attempts, {"job": job, "attempt": attempt}, values)

    def put_restart(self, job: str, attempt: int, restart: int, **values: Any) -> None:
        """Makes the row or changes the given columns of it; the columns are RestartRow's."""
        upsert(self.connection, schema.restarts, {"job": job, "attempt": attempt, "restart": restart}, values)

    def put_checkpoint(self, job: str, generation: str, step: int, **values: Any) -> None:
        """Makes the row or changes the given columns of it; the columns are CheckpointRow's."""
        upsert(
            self.connection, schema.checkpoints, {"job": job, "generation": generation, "step": step}, values
        )

    def mark_checkpoint(
        self, job: str, generation: str, step: int, state: str, *, reason: str | None = None
    ) -> None:
        """Retention deleted it, or reading it showed damage; one that was never recorded is left out."""
        table = schema.checkpoints
        where = (table.c.job == job, table.c.generation == generation, table.c.step == step)
        self.connection.execute(table.update().where(*where).values(state=state, reason=reason))

    def put_progress(self, row: ProgressRow) -> None:
        """Replaces the newest progress of a rank; an older generation's never replaces a newer one's."""
        table = schema.progress
        key = {"job": row.job, "rank": row.rank}
        query = select(table.c.generation).where(table.c.job == row.job, table.c.rank == row.rank)
        present = self.connection.execute(query).scalar_one_or_none()
        if present is None or present <= row.generation:  # zero-padded: text order is generation order
            values = {
                name: getattr(row, name) for name in ProgressRow.__dataclass_fields__ if name not in key
            }
            upsert(self.connection, table, key, values)

    def put_secret(self, job: str, name: str, sealed: bytes) -> None:
        upsert(self.connection, schema.secrets, {"job": job, "name": name}, {"sealed": sealed})

    def set_code(self, job: str, code: Mapping[str, Any]) -> None:
        self.connection.execute(schema.jobs.update().where(schema.jobs.c.id == job).values(code=dict(code)))

    def set_spec(self, job: str, spec: Mapping[str, Any], priority: int) -> None:
        values = {"spec": dict(spec), "priority": priority}
        self.connection.execute(schema.jobs.update().where(schema.jobs.c.id == job).values(**values))

    def add_note(self, job: str, text: str, *, t_us: int) -> None:
        """A sentence for `orch status JOB`; the newest NOTES_MAX are kept."""
        table = schema.jobs
        notes = (
            self.connection.execute(select(table.c.notes).where(table.c.id == job)).scalar_one_or_none() or []
        )
        notes = [*notes, {"t_us": t_us, "text": text}][-NOTES_MAX:]
        self.connection.execute(table.update().where(table.c.id == job).values(notes=notes))


def no_such_job(job: str) -> NoSuchJob:
    return NoSuchJob(f"there is no job {job!r}; `orch status` lists the jobs of this server")


def holder(connection: Connection, *, lock: bool = True) -> str:
    """Number of the controller that claimed the store last; `lock`: its row too, where the engine has such locks."""
    table = schema.meta
    query = select(table.c.value).where(table.c.key == "controller")
    return str(connection.execute(query.with_for_update() if lock else query).scalar_one())


def _job_columns(state: JobState) -> dict[str, Any]:
    return {
        "state": state.state.value,
        "reason": state.reason,
        "unprotected": state.unprotected,
        "submitted_us": state.submitted_us,
        "started_us": state.started_us,
        "ended_us": state.ended_us,
        "attempt": state.attempt,
        "restart": state.restart,
        "exit_code": state.exit_code,
        "error": state.traceback,
        "lifecycle": state.to_dict(),
        "spent_us": dict(state.books["us"] if state.books else state.spent_us),
    }


def lifecycle_of(connection: Connection, job: str) -> JobState:
    query = select(schema.jobs.c.lifecycle).where(schema.jobs.c.id == job)
    document = connection.execute(query).scalar_one_or_none()
    if document is None:
        raise no_such_job(job)
    return JobState.from_dict(document)


def cursor_of(connection: Connection, job: str, attempt: int, rank: int) -> int:
    table = schema.cursors
    query = select(table.c.position).where(
        table.c.job == job, table.c.attempt == attempt, table.c.rank == rank
    )
    return int(connection.execute(query).scalar_one_or_none() or 0)
