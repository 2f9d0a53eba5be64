"""From one version of the store's tables to the next and back, on SQLite and on PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sqlalchemy import Connection, inspect, text

from orch.control import schema
from orch.control.database import store_url
from orch.control.home import Home
from orch.control.rows import ProgressRow
from orch.control.store import Store, StoreTakenError
from orch.model.errors import WrongUse
from support.stores import BOTH, add, outside

pytestmark = BOTH


def with_more(*steps: Callable[[Connection], None]) -> tuple[schema.Migration, ...]:
    return (*schema.MIGRATIONS, *(schema.Migration(step, step) for step in steps))


def test_what_was_written_is_there_after_opening_again(home: Home, env: dict[str, str]) -> None:
    first = Store.open(home, env)
    assert first.migrated_from == 0
    add(first)
    first.close()
    second = Store.open(home, env)
    assert second.migrated_from == len(schema.MIGRATIONS) + 1
    assert second.job("a-1").spec == {"run": "x"}
    second.close()


def test_migration_takes_an_older_store_forward_once(home: Home, env: dict[str, str]) -> None:
    store = Store.open(home, env)
    add(store)
    store.close()
    calls: list[int] = []

    def second(connection: Connection) -> None:
        calls.append(2)
        connection.execute(text("ALTER TABLE jobs ADD COLUMN colour TEXT DEFAULT 'red'"))

    def third(connection: Connection) -> None:
        calls.append(3)
        connection.execute(text("UPDATE jobs SET colour = 'blue'"))

    now = len(schema.MIGRATIONS) + 1
    for expected in (now, now + 2):
        with outside(home, env) as connection:
            assert schema.migrate(connection, with_more(second, third)) == expected
    with outside(home, env) as connection:
        assert connection.execute(text("SELECT colour FROM jobs")).scalar_one() == "blue"
    assert calls == [2, 3]


def test_a_store_of_the_first_version_is_brought_forward(home: Home, env: dict[str, str]) -> None:
    store = Store.open(home, env)
    add(store)
    store.close()
    with outside(home, env) as connection:
        connection.execute(text("ALTER TABLE progress DROP COLUMN checkpointing"))
        connection.execute(text("UPDATE meta SET value = '1' WHERE key = 'schema_version'"))
    store = Store.open(home, env)
    assert store.migrated_from == 1
    row = ProgressRow(
        job="a-1", rank=0, generation="000001.000001", t_us=1, metrics={}, usage={}, checkpointing={"a": 1}
    )
    store.put_progress(row)
    assert store.progress(["a-1"])["a-1"].checkpointing == {"a": 1}
    store.close()


def test_a_migration_that_fails_changes_nothing(home: Home, env: dict[str, str]) -> None:
    Store.open(home, env).close()

    def broken(connection: Connection) -> None:
        connection.execute(text("ALTER TABLE jobs ADD COLUMN colour TEXT"))
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), outside(home, env) as connection:
        schema.migrate(connection, with_more(broken))
    assert "colour" not in columns(home, env, "jobs")
    Store.open(home, env).close()


def test_a_store_of_a_newer_orch_is_refused(home: Home, env: dict[str, str]) -> None:
    Store.open(home, env).close()
    with outside(home, env) as connection:
        connection.execute(text("UPDATE meta SET value = '99' WHERE key = 'schema_version'"))
    with pytest.raises(WrongUse, match=r"schema version 99.*orch server store --to"):
        Store.open(home, env)


@pytest.mark.parametrize(
    "statement", ["CREATE TABLE jobs (id TEXT)", "CREATE TABLE meta (key TEXT, value TEXT)"]
)
def test_a_database_of_somebody_else_is_left_alone(home: Home, env: dict[str, str], statement: str) -> None:
    with outside(home, env) as connection:
        connection.execute(text(statement))
    with pytest.raises(WrongUse, match="database of its own"):
        Store.open(home, env)


def test_down_and_up_again_loses_nothing_of_the_jobs(home: Home, env: dict[str, str]) -> None:
    """Every version there was: each knows what an older orch knows, and what it alone knew begins anew."""
    newest = len(schema.MIGRATIONS) + 1
    fresh = layout(home, env)
    for version in range(newest - 1, 0, -1):
        store = Store.open(home, env)
        assert store.migrated_from in {0, newest}
        if version == newest - 1:
            add(store)
        store.close()
        assert Store.lower(store_url(home, env), version) == newest
        assert Store.version(store_url(home, env)) == version
        store = Store.open(home, env)
        assert store.migrated_from == version
        assert store.job("a-1").spec == {"run": "x"}
        store.close()
        assert layout(home, env) == fresh, "up again it is not what a new one is"


def layout(home: Home, env: dict[str, str]) -> dict[str, set[str]]:
    Store.open(home, env).close()
    return {table: columns(home, env, table) for table in schema.metadata.tables}


def columns(home: Home, env: dict[str, str], table: str) -> set[str]:
    with outside(home, env) as connection:
        return {column["name"] for column in inspect(connection).get_columns(table)}


def test_a_way_down_that_fails_changes_nothing(home: Home, env: dict[str, str]) -> None:
    Store.open(home, env).close()

    def broken(connection: Connection) -> None:
        connection.execute(text("ALTER TABLE jobs DROP COLUMN notes"))
        raise ZeroDivisionError

    steps = (*schema.MIGRATIONS[:-1], schema.Migration(schema.MIGRATIONS[-1].up, broken))
    with pytest.raises(ZeroDivisionError), outside(home, env) as connection:
        schema.lower(connection, 1, steps)
    Store.open(home, env).close()
    assert "notes" in columns(home, env, "jobs")


def test_a_controller_that_runs_is_fenced_by_the_way_down(
    home: Home, env: dict[str, str], store: Store
) -> None:
    store.claim()
    Store.lower(store_url(home, env), 1)
    with pytest.raises(StoreTakenError):
        add(store)


@pytest.mark.parametrize("version", [0, -1, 99])
def test_versions_that_there_are_not(home: Home, env: dict[str, str], version: int) -> None:
    Store.open(home, env).close()
    with pytest.raises(WrongUse, match="from 1 to"):
        Store.lower(store_url(home, env), version)


def test_there_is_nothing_to_lower(home: Home, env: dict[str, str]) -> None:
    for look in (Store.version, lambda url: Store.lower(url, 1)):
        with pytest.raises(WrongUse, match="no store"):
            look(store_url(home, env))
