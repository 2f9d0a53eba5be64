"""The store: what is written down before anything is done. The only module that knows SQL.

SQLite (one file in the home folder, WAL) or PostgreSQL, by `ORCH_STORE`. Several threads may use one `Store`
at once; transactions that write come one after the other, so what was read inside one still holds at its end.
SQL stands here and in the modules below: database (connections), schema (tables), transaction (writes).
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Self, TypeVar

from sqlalchemy import Connection, Select, func, make_url, select, tuple_
from sqlalchemy.engine import URL
from sqlalchemy.exc import InterfaceError, InternalError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from orch.control import schema
from orch.control.clock import not_before, now_us
from orch.control.database import limited, open_engine, store_url, upsert
from orch.control.home import Home
from orch.control.rows import (
    AttemptRow,
    CheckpointRow,
    CommandRow,
    EventRow,
    JobDetailRow,
    JobRow,
    LivedRow,
    ProgressRow,
    RestartRow,
)
from orch.control.transaction import Transaction, cursor_of, holder, lifecycle_of, no_such_job
from orch.model.errors import NoServer
from orch.model.states import ENDED, JobState, State

__all__ = ["Store", "StoreAwayError", "StoreTakenError", "Transaction", "now_us", "store_url"]

JOBS_MAX = 1000
EVENTS_MAX = 1000
CHECKPOINTS_MAX = 200
ATTEMPTS_MAX = 200
RESTARTS_MAX = 1000
COMMANDS_MAX = 1000


log = logging.getLogger("orch.store")

_Row = TypeVar("_Row")
_Result = TypeVar("_Result")


class StoreTakenError(NoServer):
    """Another controller has taken this store over; the one that meets this must act no more."""


class StoreAwayError(NoServer):
    """The database cannot be used just now: full, locked by another program, gone. Try again.

    Nothing was written, unless the connection broke while its last word, the answer to the commit, was on the way: then
    what is done again meets what it has done already, which every event, report and submit allows.
    """


class Store:
    def __init__(self, url: URL | str) -> None:
        """Opens the store, makes or migrates its tables. NoServer if it cannot be opened."""
        self._url = make_url(url)
        self._claim: str | None = None
        # SQLite lets one writer in and makes the others poll; threads of one process queue here instead.
        self._writing = threading.RLock()
        self._in_transaction = False
        self._away_since: float | None = None
        self._away_because = ""
        self._opened = False  # until then tables may be migrated, which takes its time
        try:
            self._engine = open_engine(self._url)
            with self._disposed_if_it_fails(), self._begin(write=True) as connection:
                self.migrated_from = schema.migrate(connection)
            self._opened = True
        except (StoreAwayError, SQLAlchemyError, ImportError, OSError) as error:
            shown = self._url.render_as_string(hide_password=True)
            cause = error.__cause__ or error if isinstance(error, StoreAwayError) else error
            raise NoServer(f"the store {shown} cannot be opened: {_first_line(cause)}") from error

    @contextmanager
    def _disposed_if_it_fails(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self._engine.dispose()
            raise

    @classmethod
    def open(cls, home: Home, env: Mapping[str, str] | None = None) -> Self:
        return cls(store_url(home, env))

    @staticmethod
    def version(url: URL) -> int:
        """Of its tables, which stay as they are. WrongUse if it is none of orch's; NoServer if it cannot be opened."""
        return _once(url, schema.version_of)

    @staticmethod
    def lower(url: URL, version: int) -> int:
        """Brings the tables down to an older version, for an older orch. Returns the version they had.

        A controller that runs acts no more. WrongUse; NoServer if it cannot be opened.
        """
        return _once(url, lambda connection: schema.lower(connection, version))

    def close(self) -> None:
        self._engine.dispose()

    @property
    def description(self) -> str:
        """For `orch server status`; without a password."""
        return self._url.render_as_string(hide_password=True)

    def claim(self) -> int:
        """Makes this the one controller of the store: an earlier one's transactions raise StoreTakenError."""
        with self._writing, self._begin(write=True) as connection:
            number = int(holder(connection)) + 1
            upsert(connection, schema.meta, {"key": "controller"}, {"value": str(number)})
        self._claim = str(number)
        # Deadlines in the store were set by the clock of the controller before this one.
        not_before(max((state.seen_us for state in self.unfinished()), default=0))
        return number

    def assert_held(self) -> None:
        """StoreTakenError if another controller has claimed the store since. Asked right before anything is done."""
        with self._begin() as connection:
            self._assert_held(holder(connection, lock=False))

    def _assert_held(self, number: str) -> None:
        if self._claim not in {None, number}:
            raise StoreTakenError(f"controller {number} took the store over from controller {self._claim}")

    @property
    def trouble(self) -> str:
        """Why nothing can be written at present, and for how long already; empty while all is well."""
        since = self._away_since
        return "" if since is None else f"{self._away_because} (for {time.monotonic() - since:.0f} s)"

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """All or nothing: an exception undoes it all. Reads of `Store` do not see it before the end."""
        with self._writing:
            if self._in_transaction:
                raise RuntimeError("a transaction was begun inside another one")
            self._in_transaction = True
            try:
                with self._begin(write=True) as connection:
                    self._assert_held(holder(connection))
                    yield Transaction(connection)
            finally:
                self._in_transaction = False

    # Reads: each sees one consistent state.

    def job(self, job: str) -> JobDetailRow:
        """NoSuchJob if there is none."""
        columns = [schema.jobs.c[name] for name in JobDetailRow.__dataclass_fields__]
        with self._begin() as connection:
            row = connection.execute(select(*columns).where(schema.jobs.c.id == job)).mappings().one_or_none()
        if row is None:
            raise no_such_job(job)
        return JobDetailRow(**row)

    def state(self, job: str) -> State:
        """NoSuchJob if there is none."""
        with self._begin() as connection:
            query = select(schema.jobs.c.state).where(schema.jobs.c.id == job)
            found = connection.execute(query).scalar_one_or_none()
        if found is None:
            raise no_such_job(job)
        return State(found)

    def jobs(
        self, *, states: Sequence[str] = (), limit: int = JOBS_MAX, before: tuple[int, str] | None = None
    ) -> list[JobRow]:
        """Newest first; `before` is (submitted_us, id) of the last one already seen."""
        table = schema.jobs
        query = select(*(table.c[name] for name in JobRow.__dataclass_fields__))
        if states:
            query = query.where(table.c.state.in_(states))
        if before is not None:
            query = query.where(tuple_(table.c.submitted_us, table.c.id) < tuple_(*before))
        query = query.order_by(table.c.submitted_us.desc(), table.c.id.desc()).limit(min(limit, JOBS_MAX))
        return self._rows(query, JobRow)

    def count_by_state(self) -> dict[str, int]:
        query = select(schema.jobs.c.state, func.count()).group_by(schema.jobs.c.state)
        with self._begin() as connection:
            return {row[0]: row[1] for row in connection.execute(query)}

    def lifecycle(self, job: str) -> JobState:
        """NoSuchJob if there is none."""
        with self._begin() as connection:
            return lifecycle_of(connection, job)

    def unfinished(self) -> list[JobState]:
        """Every job that has not ended, oldest first: what a new controller adopts."""
        table = schema.jobs
        query = select(table.c.lifecycle).where(table.c.state.not_in([state.value for state in ENDED]))
        with self._begin() as connection:
            rows = connection.execute(query.order_by(table.c.submitted_us, table.c.id)).scalars().all()
        return [JobState.from_dict(row) for row in rows]

    def priorities(self, jobs: Sequence[str]) -> dict[str, int]:
        query = select(schema.jobs.c.id, schema.jobs.c.priority).where(schema.jobs.c.id.in_(jobs))
        with self._begin() as connection:
            return {row[0]: row[1] for row in connection.execute(query)}

    def job_of_request(self, request: str) -> str | None:
        """The id of the job that a submit with this number has made already."""
        with self._begin() as connection:
            query = select(schema.jobs.c.id).where(schema.jobs.c.request == request)
            return connection.execute(query).scalar_one_or_none()

    def attempts(self, job: str) -> list[AttemptRow]:
        """The newest ATTEMPTS_MAX, oldest first."""
        table = schema.attempts
        query = select(table).where(table.c.job == job).order_by(table.c.attempt.desc()).limit(ATTEMPTS_MAX)
        return self._rows(query, AttemptRow)[::-1]

    def restarts(self, job: str) -> list[RestartRow]:
        """The newest RESTARTS_MAX, oldest first."""
        table = schema.restarts
        query = select(table).where(table.c.job == job)
        query = query.order_by(table.c.attempt.desc(), table.c.restart.desc()).limit(RESTARTS_MAX)
        return self._rows(query, RestartRow)[::-1]

    def start_counts(self, jobs: Sequence[str]) -> dict[str, int]:
        """Starts of the training processes, per job; the first one is counted too, one that never came is not."""
        table = schema.restarts
        query = select(table.c.job, func.count()).where(
            table.c.job.in_(jobs), table.c.started_us.is_not(None)
        )
        query = query.group_by(table.c.job)
        with self._begin() as connection:
            return {row[0]: row[1] for row in connection.execute(query)}

    def lived(self, job: str, *, limit: int) -> list[LivedRow]:
        """The newest jobs that ever ran, and `job` whatever its age."""
        table = schema.jobs
        columns = [table.c[name] for name in LivedRow.__dataclass_fields__]
        ran = table.c.started_us.is_not(None)
        newest = select(table.c.id).where(ran).order_by(table.c.submitted_us.desc(), table.c.id).limit(limit)
        return self._rows(select(*columns).where(table.c.id.in_(newest) | (table.c.id == job)), LivedRow)

    def checkpoints(
        self, job: str, *, states: Sequence[str] = (), limit: int = CHECKPOINTS_MAX
    ) -> list[CheckpointRow]:
        """Newest first."""
        table = schema.checkpoints
        query = select(table).where(table.c.job == job)
        if states:
            query = query.where(table.c.state.in_(states))
        query = query.order_by(table.c.committed_us.desc(), table.c.step.desc()).limit(
            min(limit, CHECKPOINTS_MAX)
        )
        return self._rows(query, CheckpointRow)

    def last_checkpoints(self, jobs: Sequence[str]) -> dict[str, CheckpointRow]:
        """The newest checkpoint that is still there, per job."""
        table = schema.checkpoints
        place = func.row_number().over(
            partition_by=table.c.job, order_by=(table.c.committed_us.desc(), table.c.step.desc())
        )
        ranked = (
            select(table, place.label("place"))
            .where(table.c.job.in_(jobs), table.c.state == "committed")
            .subquery()
        )
        query = select(*(ranked.c[column.name] for column in table.columns)).where(ranked.c.place == 1)
        return {row.job: row for row in self._rows(query, CheckpointRow)}

    def events(self, job: str, *, after: int = 0, limit: int = EVENTS_MAX) -> list[EventRow]:
        """In the order they were written down."""
        table = schema.events
        query = select(table).where(table.c.job == job, table.c.seq > after)
        return self._rows(query.order_by(table.c.seq).limit(min(limit, EVENTS_MAX)), EventRow)

    def events_of(self, types: Sequence[str], *, after: int = 0, limit: int = EVENTS_MAX) -> list[EventRow]:
        """Of every job, in the order they were written down."""
        table = schema.events
        query = select(table).where(table.c.seq > after, table.c.type.in_(types))
        return self._rows(query.order_by(table.c.seq).limit(min(limit, EVENTS_MAX)), EventRow)

    def progress(self, jobs: Sequence[str], *, rank: int = 0) -> dict[str, ProgressRow]:
        table = schema.progress
        query = select(table).where(table.c.job.in_(jobs), table.c.rank == rank)
        return {row.job: row for row in self._rows(query, ProgressRow)}

    def pending_commands(self, limit: int = COMMANDS_MAX) -> list[CommandRow]:
        """What was decided and is not done yet, oldest first."""
        table = schema.outbox
        query = (
            select(table)
            .where(table.c.done_us.is_(None))
            .order_by(table.c.seq)
            .limit(min(limit, COMMANDS_MAX))
        )
        return self._rows(query, CommandRow)

    def cursor(self, job: str, attempt: int, rank: int) -> int:
        """Number of the last report of this agent that was consumed; 0: none."""
        with self._begin() as connection:
            return cursor_of(connection, job, attempt, rank)

    def sealed_secrets(self, job: str) -> dict[str, bytes]:
        table = schema.secrets
        with self._begin() as connection:
            rows = connection.execute(select(table.c.name, table.c.sealed).where(table.c.job == job))
            return {name: bytes(sealed) for name, sealed in rows}

    # Writes of one statement, outside the lifecycle.

    def command_done(self, seq: int, t_us: int | None = None) -> None:
        with self.transaction() as transaction:
            transaction.command_done(seq, t_us)

    def command_failed(self, seq: int, error: str) -> int:
        """Keeps the error and returns how often this command was tried."""
        table = schema.outbox
        with self.transaction() as transaction:
            values = {"tries": table.c.tries + 1, "last_error": error}
            transaction.connection.execute(table.update().where(table.c.seq == seq).values(values))
            return int(
                transaction.connection.execute(select(table.c.tries).where(table.c.seq == seq)).scalar_one()
            )

    def put_progress(self, row: ProgressRow) -> None:
        with self.transaction() as transaction:
            transaction.put_progress(row)

    def _rows(self, query: Select[Any], kind: type[_Row]) -> list[_Row]:
        with self._begin() as connection:
            return [kind(**row) for row in connection.execute(query).mappings()]

    @contextmanager
    def _begin(self, *, write: bool = False) -> Iterator[Connection]:
        options = {"orch_write": write}
        try:
            with (
                self._engine.connect().execution_options(**options) as connection,
                limited(connection) if self._opened else nullcontext(),
                connection.begin(),
            ):
                yield connection
        # Internal: what PostgreSQL says of a session that it ended, or of a copy that takes no writes.
        except (OperationalError, InterfaceError, InternalError, PoolTimeoutError) as error:
            raise self._away(str(getattr(error, "orig", None) or error)) from error
        if write and self._away_since is not None:
            log.warning("the store can be written again, after %.1f s", time.monotonic() - self._away_since)
            self._away_since = None

    def _away(self, because: str) -> StoreAwayError:
        """Says it once; whoever needs the store tries again."""
        self._away_because = because.strip().partition("\n")[0]
        if self._away_since is None and self._claim is not None:
            self._away_since = time.monotonic()
            log.warning("the store cannot be used: %s; training goes on, and is written down later", because)
        return StoreAwayError(f"the server's store cannot be used just now: {self._away_because}; try again")


def _once(url: URL, act: Callable[[Connection], _Result]) -> _Result:
    """One transaction on a database that is opened for it alone."""
    try:
        engine = open_engine(url)
        try:
            with engine.connect().execution_options(orch_write=True) as connection, connection.begin():
                return act(connection)
        finally:
            engine.dispose()
    except (SQLAlchemyError, ImportError, OSError) as error:
        shown = url.render_as_string(hide_password=True)
        raise NoServer(f"the store {shown} cannot be opened: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
