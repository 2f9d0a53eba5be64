"""The store's disk is full, or another program holds its database: said, nothing lost, nothing written twice."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import event

from orch.control import database
from orch.control.home import Home
from orch.control.rows import NewJob
from orch.control.store import Store, StoreAwayError
from orch.model.states import JobState, State

BIG = "x" * 60_000


@pytest.fixture
def store(home: Home) -> Iterator[Store]:
    store = Store.open(home, {})
    store.claim()
    with store.transaction() as transaction:
        state = JobState(job="a-1", state=State.QUEUED, submitted_us=1, since_us=1)
        transaction.insert_job(NewJob(name="a", spec={"run": "x"}, sealed_secrets={}), state)
    yield store
    store.close()


def limit_pages(store: Store, pages: int) -> None:
    """What SQLite itself takes for a disk without room."""

    def connected(connection: Any, _record: Any) -> None:
        connection.execute(f"PRAGMA max_page_count={pages}").close()

    event.listen(store._engine, "connect", connected)
    store._engine.dispose()


def append(store: Store, text: str) -> None:
    with store.transaction() as transaction:
        assert transaction.consume("a-1", 1, 0, 1)
        transaction.append_event("a-1", {"type": "AgentUp", "text": text}, t_us=2)
        transaction.save(JobState(job="a-1", state=State.RUNNING, submitted_us=1, since_us=2))


def test_a_full_disk_is_no_half_transaction(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    limit_pages(store, 40)
    with caplog.at_level(logging.WARNING), pytest.raises(StoreAwayError, match="database or disk is full"):
        append(store, BIG * 3)
    assert "full" in store.trouble
    assert store.state("a-1") is State.QUEUED
    assert store.cursor("a-1", 1, 0) == 0, "the report would be lost: it counts as consumed"
    assert store.events("a-1") == []
    limit_pages(store, 4000)
    append(store, BIG * 3)
    assert [row.type for row in store.events("a-1")] == ["AgentUp"]
    assert store.trouble == ""
    gone, back = [record.getMessage() for record in caplog.records]
    assert "training goes on" in gone
    assert "can be written again" in back


def test_a_lock_of_another_program(
    home: Home, store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(database, "BUSY_LIMIT_S", 0.05)
    impatient = Store.open(home, {})
    other = sqlite3.connect(home.database, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreAwayError, match="locked"):
        append(impatient, "")
    assert impatient.state("a-1") is State.QUEUED, "it can still be read"
    other.execute("ROLLBACK")
    other.close()
    append(impatient, "")
    assert [row.type for row in store.events("a-1")] == ["AgentUp"]
    impatient.close()
