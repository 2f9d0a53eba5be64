"""Connections: which databases orch can use, how they are opened, and how values are put into columns."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Dialect, Engine, Table, Text, create_engine, event, make_url
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError, DisconnectionError
from sqlalchemy.types import TypeDecorator

from orch.control.home import Home
from orch.control.patience import Patience
from orch.model.errors import WrongUse

BUSY_LIMIT_S = 15.0
"""How long a transaction waits for another process that writes to the same SQLite file; in PostgreSQL the limit of a
statement, of its waiting for a lock, and of a pause within a transaction.
"""
CONNECT_LIMIT_S = 10
SILENCE_LIMIT_S = 15
"""PostgreSQL: a server that answers nothing at all, behind a broken network say, is given up after so long."""
KEEPALIVE_S = 5
TRANSACTION_LIMIT_S = 60.0
"""PostgreSQL: from a transaction's begin to the answer to its commit, whatever the server does."""
POOL_CONNECTIONS = 8
POOL_CONNECTIONS_MAX = 48
"""More than the API has threads, so that none waits for a connection."""
DATABASES = ("sqlite", "postgresql+psycopg")
TEXT_CHARS_MAX = 256 << 10
"""Longer texts (a command's traceback, an error of storage) are cut in the middle, and say so."""
JSON_CHARS_MAX = 16 << 20
"""A longer document is refused: whoever writes it has lost a limit."""


class SafeText(TypeDecorator[str]):
    """Text from outside. NUL and lone surrogates, which engines refuse, are replaced; too long is cut."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        if value is None:
            return None
        if len(value) > TEXT_CHARS_MAX:
            half = TEXT_CHARS_MAX // 2
            value = f"{value[:half]}\n… {len(value) - 2 * half} characters left out …\n{value[-half:]}"
        return value.replace("\0", "\ufffd").encode("utf-8", "replace").decode("utf-8")


class JsonText(TypeDecorator[Any]):
    """Any JSON value, NaN and infinities included; None is NULL."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:
        if value is None:
            return None
        encoded = json.dumps(value, separators=(",", ":"))
        if len(encoded) > JSON_CHARS_MAX:
            raise ValueError(f"a document of {len(encoded)} characters is over the limit of {JSON_CHARS_MAX}")
        return encoded

    def process_result_value(self, value: str | None, dialect: Dialect) -> Any:
        return None if value is None else json.loads(value)


def store_url(home: Home, env: Mapping[str, str] | None = None) -> URL:
    """`ORCH_STORE`, else the SQLite file of the home. WrongUse names what is supported, never a password."""
    given = (os.environ if env is None else env).get("ORCH_STORE", "")
    if not given:
        return URL.create("sqlite", database=str(home.database))
    try:
        url = make_url(given)
    except ArgumentError:
        raise WrongUse(
            "ORCH_STORE is no database URL; postgresql+psycopg://user@host/database is one"
        ) from None
    if url.drivername not in DATABASES:
        raise WrongUse(f"ORCH_STORE names {url.drivername!r}; supported are {' and '.join(DATABASES)}")
    if url.drivername == "sqlite" and url.database in {None, "", ":memory:"}:
        raise WrongUse(
            "ORCH_STORE names a database in memory, which loses every job; sqlite:////path/orch.db is a file"
        )
    return url


def open_engine(url: URL) -> Engine:
    """An engine with real transactions: those with the option `orch_write` exclude other writers."""
    if url.drivername != "sqlite":
        engine = create_engine(
            url,
            pool_size=POOL_CONNECTIONS,
            max_overflow=POOL_CONNECTIONS_MAX - POOL_CONNECTIONS,
            connect_args={name: value for name, value in _POSTGRESQL.items() if name not in url.query},
        )
        event.listen(engine, "connect", _postgresql_connect)
        event.listen(engine, "checkout", _postgresql_checkout)
        return engine
    assert url.database is not None
    # SQLite would make it with the umask; its -wal and -shm files take its mode.
    os.close(os.open(Path(url.database), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
    engine = create_engine(
        url,
        connect_args={"timeout": BUSY_LIMIT_S},
        pool_size=POOL_CONNECTIONS,
        max_overflow=POOL_CONNECTIONS_MAX - POOL_CONNECTIONS,
    )
    event.listen(engine, "connect", _sqlite_connect)
    event.listen(engine, "begin", _sqlite_begin)
    return engine


_POSTGRESQL = {
    "connect_timeout": CONNECT_LIMIT_S,
    "application_name": "orch",
    "keepalives_idle": KEEPALIVE_S,
    "keepalives_interval": KEEPALIVE_S,
    "keepalives_count": SILENCE_LIMIT_S // KEEPALIVE_S,
    "tcp_user_timeout": 1000 * SILENCE_LIMIT_S,
}
"""What libpq is told, where the URL says nothing of it."""


def _postgresql_connect(connection: Any, _record: Any) -> None:
    """No call waits in the server without end, and a controller that stands still keeps no other one from the store."""
    limits = ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout")
    # Not as start options, which poolers between refuse.
    connection.autocommit = True
    for limit in limits:
        connection.execute(f"SET {limit} = '{BUSY_LIMIT_S:g}s'")
    connection.autocommit = False


def _postgresql_checkout(connection: Any, _record: Any, _proxy: Any) -> None:
    """The database may have been restarted since the last use: then the pool makes a new connection."""
    try:
        with _patience.limited(connection.fileno()):
            connection.execute("SELECT 1")
            connection.rollback()
    except connection.Error as error:
        raise DisconnectionError from error


_patience = Patience(TRANSACTION_LIMIT_S)


@contextmanager
def limited(connection: Connection) -> Iterator[None]:
    """What is done over this connection inside comes to an end, one or the other."""
    if connection.dialect.name != "postgresql":
        yield
        return
    with _patience.limited(connection.connection.dbapi_connection.fileno()):  # type: ignore[union-attr]
        yield


def _sqlite_connect(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # the driver must not begin by itself: _sqlite_begin does
    # FULL: an attempt that was issued stays issued through a power cut, or two could carry one number.
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}").close()


def _sqlite_begin(connection: Connection) -> None:
    # IMMEDIATE: a transaction that reads first and writes later fails where another one wrote in between.
    writes = connection.get_execution_options().get("orch_write")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def upsert(connection: Connection, table: Table, key: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """Changes the row of `key`, or makes it. Within a transaction that excludes other writers."""
    where = [table.c[name] == value for name, value in key.items()]
    if values:
        changed = connection.execute(table.update().where(*where).values(**values)).rowcount
    else:
        changed = connection.execute(table.select().where(*where)).first() is not None
    if not changed:
        connection.execute(table.insert().values(**key, **values))
