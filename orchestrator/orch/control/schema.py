"""The tables, their version, and the steps from one version to the next. SQLite and PostgreSQL alike.

Times are integers, microseconds UTC (`_us`). Structured values are JSON in text columns: only Python reads
them, and text keeps NaN and infinity, which PostgreSQL's own JSON refuses.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from sqlalchemy import (
    DDL,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Connection,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    event,
    inspect,
    select,
    text,
)

from orch.control.database import JsonText, SafeText
from orch.model.errors import WrongUse

metadata = MetaData()

# SQLite numbers by itself only what is declared INTEGER; PostgreSQL needs the eight bytes.
_Seq = BigInteger().with_variant(Integer(), "sqlite")


def _job_key() -> Column[str]:
    return Column("job", String(63), ForeignKey("jobs.id"), primary_key=True)


meta = Table(
    "meta", metadata, Column("key", String(63), primary_key=True), Column("value", Text, nullable=False)
)

jobs = Table(
    "jobs",
    metadata,
    Column("id", String(63), primary_key=True),
    Column("name", SafeText, nullable=False),
    Column("request", String(64), unique=True),  # the submit's own number: repeating it is the same job
    Column("state", String(16), nullable=False),
    Column("reason", SafeText, nullable=False, default=""),
    Column("priority", Integer, nullable=False, default=0),
    Column("unprotected", Boolean, nullable=False, default=False),
    Column("submitted_us", BigInteger, nullable=False),
    Column("started_us", BigInteger),
    Column("ended_us", BigInteger),
    Column("attempt", Integer, nullable=False, default=0),
    Column("restart", Integer, nullable=False, default=0),
    Column("exit_code", Integer),
    Column("error", SafeText),
    Column("spec", JsonText, nullable=False),
    Column("code", JsonText),  # digest, size_bytes, git_commit, git_dirty of what was shipped
    Column("lifecycle", JsonText, nullable=False),  # orch.model.states.JobState, all that decides
    Column("spent_us", JsonText, nullable=False, default=dict),  # state → time in it
    Column("notes", JsonText, nullable=False, default=list),
    Column("revision", BigInteger, nullable=False, default=1),  # raised by every change of the lifecycle
    Index("jobs_by_age", "submitted_us", "id"),
    Index("jobs_by_state", "state"),
)

attempts = Table(
    "attempts",
    metadata,
    _job_key(),
    Column("attempt", Integer, primary_key=True),
    Column("started_us", BigInteger),
    Column("ended_us", BigInteger),
    Column("node", SafeText),
    Column("reason", SafeText),  # why this attempt was made
    Column("outcome", SafeText),  # how it ended
)

restarts = Table(
    "restarts",
    metadata,
    _job_key(),
    Column("attempt", Integer, primary_key=True),
    Column("restart", Integer, primary_key=True),
    Column("started_us", BigInteger),
    Column("ended_us", BigInteger),
    Column("cause", SafeText),  # what broke before it (NULL: the first start)
    Column("evidence", SafeText),
    Column("decision", SafeText),
    Column("charged_to", String(32)),
    Column("restored_step", BigInteger),
    Column("restored_from", SafeText),
    Column("lost_steps", BigInteger),
    Column("lost_us", BigInteger),  # time that the lost steps had taken, where it is known
    Column("recovery_us", BigInteger),
    Column("exit_code", Integer),
    Column("signal", Integer),
)

checkpoints = Table(
    "checkpoints",
    metadata,
    _job_key(),
    Column("generation", String(32), primary_key=True),
    Column("step", BigInteger, primary_key=True),
    Column("epoch", Integer),
    Column("committed_us", BigInteger, nullable=False),
    Column("size_bytes", BigInteger),
    Column("duration_us", BigInteger),
    Column("state", String(16), nullable=False, default="committed"),
    Column("reason", SafeText),  # why it is kept, or why it was quarantined
    CheckConstraint("state IN ('committed', 'quarantined', 'deleted')", name="checkpoint_state"),
    Index("checkpoints_by_time", "job", "committed_us"),
)

events = Table(
    "events",
    metadata,
    Column("seq", _Seq, primary_key=True, autoincrement=True),
    Column("job", String(63), ForeignKey("jobs.id"), nullable=False),
    Column("t_us", BigInteger, nullable=False),
    Column("type", String(63), nullable=False),
    Column("cause", SafeText),
    Column("evidence", SafeText),
    Column("decision", SafeText),
    Column("data", JsonText, nullable=False),
    Index("events_by_job", "job", "seq"),
    sqlite_autoincrement=True,  # a number is never used twice
)

outbox = Table(
    "outbox",
    metadata,
    Column("seq", _Seq, primary_key=True, autoincrement=True),
    Column("job", String(63), ForeignKey("jobs.id"), nullable=False),
    Column("type", String(63), nullable=False),
    Column("data", JsonText, nullable=False),
    Column("created_us", BigInteger, nullable=False),
    Column("done_us", BigInteger),
    Column("tries", Integer, nullable=False, default=0),
    Column("last_error", SafeText),
    sqlite_autoincrement=True,
)
Index(
    "outbox_pending",
    outbox.c.seq,
    sqlite_where=outbox.c.done_us.is_(None),
    postgresql_where=outbox.c.done_us.is_(None),
)

progress = Table(
    "progress",
    metadata,
    _job_key(),
    Column("rank", Integer, primary_key=True),
    Column("generation", String(32), nullable=False),
    Column("t_us", BigInteger, nullable=False),
    Column("step", BigInteger),
    Column("epoch", Integer),
    Column("steps_per_s", JsonText),
    Column("metrics", JsonText, nullable=False, default=dict),
    Column("usage", JsonText, nullable=False, default=dict),  # CPU, memory, GPU of the worker's processes
    Column("checkpointing", JsonText),  # interval, its reasons, what a save costs
)

secrets = Table(
    "secrets",
    metadata,
    _job_key(),
    Column("name", String(255), primary_key=True),
    Column("sealed", LargeBinary, nullable=False),
)

cursors = Table(
    "cursors",
    metadata,
    _job_key(),
    Column("attempt", Integer, primary_key=True),
    Column("rank", Integer, primary_key=True),
    Column("position", BigInteger, nullable=False),
)

# The event table is the job's memory: the engine itself refuses to change or delete a row of it.
for _what in ("UPDATE", "DELETE"):
    event.listen(
        events,
        "after_create",
        DDL(  # type: ignore[no-untyped-call]
            f"CREATE TRIGGER events_no_{_what.lower()} BEFORE {_what} ON events"
            " BEGIN SELECT RAISE(ABORT, 'events are append-only'); END"
        ).execute_if(dialect="sqlite"),
    )
    event.listen(
        events,
        "after_create",
        DDL(  # type: ignore[no-untyped-call]
            "CREATE OR REPLACE FUNCTION events_append_only() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN RAISE EXCEPTION 'events are append-only'; END $$;"
            f" CREATE TRIGGER events_no_{_what.lower()} BEFORE {_what} ON events"
            " FOR EACH ROW EXECUTE FUNCTION events_append_only()"
        ).execute_if(dialect="postgresql"),
    )


class Migration(NamedTuple):
    """One version to the next and back, inside the caller's transaction."""

    up: Callable[[Connection], None]
    down: Callable[[Connection], None]
    """Takes away what the older orch does not know; jobs, their events and their commands stay."""


def _add_checkpointing(connection: Connection) -> None:
    connection.execute(text("ALTER TABLE progress ADD COLUMN checkpointing TEXT"))


def _drop_checkpointing(connection: Connection) -> None:
    connection.execute(text("ALTER TABLE progress DROP COLUMN checkpointing"))


MIGRATIONS: Sequence[Migration] = (Migration(_add_checkpointing, _drop_checkpointing),)
"""`MIGRATIONS[i]` takes a store of version i+1 to version i+2. A step that was released is never changed;
`metadata` above is always the newest version: a new store needs no steps."""

_LOCK_NUMBER = 0x6F726368
"""PostgreSQL: two servers that open one new store at the same time do this one after the other."""


def migrate(connection: Connection, migrations: Sequence[Migration] = MIGRATIONS) -> int:
    """Brings an empty or older store to the newest version, in the caller's transaction.

    Returns the version found, 0 for an empty store. WrongUse if a newer orch wrote it, or if it is no store.
    """
    newest = len(migrations) + 1
    _alone(connection)
    tables = set(inspect(connection).get_table_names())
    if "meta" not in tables:
        taken = sorted(tables & set(metadata.tables))
        if taken:
            raise WrongUse(
                f"the database has a table {taken[0]!r} that is not orch's; give orch a database of its own"
            )
        metadata.create_all(connection)
        connection.execute(meta.insert().values(key="schema_version", value=str(newest)))
        # Its row is also the lock that makes PostgreSQL's writers come one after the other, as SQLite's do.
        connection.execute(meta.insert().values(key="controller", value="0"))
        return 0
    found = version_of(connection)
    if found > newest:
        raise WrongUse(
            f"the store has schema version {found}, written by a newer orch; this one knows {newest}: upgrade orch, or"
            f" have the newer one bring the store down with `orch server store --to {newest}`"
        )
    for step in migrations[found - 1 :]:
        step.up(connection)
    if found < newest:
        _set_version(connection, newest)
    return found


def lower(connection: Connection, version: int, migrations: Sequence[Migration] = MIGRATIONS) -> int:
    """Brings a store down to an older version, for an older orch, in the caller's transaction. Returns that found.

    WrongUse if there is no such version, or no store. A controller that runs is fenced: it acts no more.
    """
    _alone(connection)
    found = version_of(connection)
    if not 1 <= version <= found <= len(migrations) + 1:
        raise WrongUse(
            f"the store has schema version {found}; this orch brings it down to a version from 1 to {found}"
        )
    holder = meta.c.key == "controller"
    number = int(connection.execute(select(meta.c.value).where(holder).with_for_update()).scalar_one())
    connection.execute(meta.update().where(holder).values(value=str(number + 1)))
    for step in reversed(migrations[version - 1 : found - 1]):
        step.down(connection)
    _set_version(connection, version)
    return found


def version_of(connection: Connection) -> int:
    """Of the tables. WrongUse if there are none, or if they are somebody else's."""
    if "meta" not in inspect(connection).get_table_names():
        raise WrongUse("there is no store yet: the database is empty")
    stored = connection.execute(
        select(meta.c.value).where(meta.c.key == "schema_version")
    ).scalar_one_or_none()
    if stored is None:
        raise WrongUse("the database has a table 'meta' that is not orch's; give orch a database of its own")
    return int(stored)


def _set_version(connection: Connection, version: int) -> None:
    connection.execute(meta.update().where(meta.c.key == "schema_version").values(value=str(version)))


def _alone(connection: Connection) -> None:
    if connection.dialect.name == "postgresql":
        # A table with many rows takes its time.
        connection.execute(text("SET LOCAL statement_timeout = 0"))
        connection.execute(text("SELECT pg_advisory_xact_lock(:number)"), {"number": _LOCK_NUMBER})
