"""PostgreSQL goes away in every way it can: said, nothing lost, nothing written twice, nobody waits without end."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import event, text

from orch.control import database
from orch.control.home import Home
from orch.control.store import Store, StoreAwayError, StoreTakenError
from orch.model.errors import NoServer
from orch.model.states import JobState, State
from support.postgres import Postgres
from support.server import wait_for
from support.stores import add


@pytest.fixture
def engine() -> str:
    return "postgresql"


@pytest.fixture
def own(postgres: Postgres) -> Iterator[Postgres]:
    """It runs again when the test is over."""
    yield postgres
    postgres.thaw()
    if not postgres.runs:
        postgres.start()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "BUSY_LIMIT_S", 0.3)
    monkeypatch.setitem(database._POSTGRESQL, "connect_timeout", 2)  # libpq's least
    monkeypatch.setattr(database._patience, "limit_s", 0.5)


def name_of(env: dict[str, str]) -> str:
    return env["ORCH_STORE"].rpartition("/")[2]


def running(store: Store) -> None:
    with store.transaction() as transaction:
        assert transaction.consume("a-1", 1, 0, 1)
        transaction.append_event("a-1", {"type": "AgentUp"}, t_us=2)
        transaction.save(JobState(job="a-1", state=State.RUNNING, submitted_us=1, since_us=2))


def in_two_halves(store: Store, meanwhile: Callable[[], Any]) -> None:
    with store.transaction() as transaction:
        assert transaction.consume("a-1", 1, 0, 2)
        meanwhile()
        transaction.append_event("a-1", {"type": "Progressed"}, t_us=2)


AWAY: dict[str, Callable[[Postgres], None]] = {
    "stopped": lambda postgres: postgres.stop(),
    "stopped at once": lambda postgres: postgres.stop(signal.SIGQUIT),
    "killed": lambda postgres: postgres.kill(),
}


@pytest.mark.parametrize("how", AWAY)
def test_it_goes_and_comes_back(
    how: str, own: Postgres, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    add(store)
    store.claim()
    with caplog.at_level(logging.WARNING):
        AWAY[how](own)
        for act in (lambda: running(store), lambda: store.job("a-1"), store.assert_held):
            with pytest.raises(StoreAwayError, match="try again"):
                act()
        assert store.trouble
        assert own.password not in store.trouble + caplog.text
        own.start()
        assert store.state("a-1") is State.QUEUED
        running(store)
    assert [row.type for row in store.events("a-1")] == ["AgentUp"]
    assert store.trouble == ""
    gone, back = [record.getMessage() for record in caplog.records if record.name == "orch.store"]
    assert "training goes on" in gone
    assert "can be written again" in back


def test_it_is_killed_within_a_transaction(own: Postgres, store: Store) -> None:
    add(store)
    with pytest.raises(StoreAwayError):
        in_two_halves(store, own.kill)
    own.start()
    assert (store.cursor("a-1", 1, 0), store.events("a-1")) == (0, [])
    running(store)


def test_the_answer_to_a_commit_is_lost(own: Postgres, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was written; whoever does it again finds its report consumed."""
    add(store)

    def kill(_connection: Any) -> None:
        own.kill()

    event.listen(store._engine, "commit", kill)  # before it is sent: this one is undone
    with pytest.raises(StoreAwayError):
        running(store)
    event.remove(store._engine, "commit", kill)
    own.start()
    running(store)
    commit = store._engine.dialect.do_commit

    def lost(connection: Any) -> None:
        commit(connection)
        own.kill()
        connection.execute("SELECT 1")

    monkeypatch.setattr(store._engine.dialect, "do_commit", lost)
    with pytest.raises(StoreAwayError):
        in_two_halves(store, lambda: None)
    monkeypatch.undo()
    own.start()
    with store.transaction() as transaction:
        assert not transaction.consume("a-1", 1, 0, 2)
    assert [row.type for row in store.events("a-1")] == ["AgentUp", "Progressed"]


@pytest.mark.usefixtures("impatient")
def test_it_stands_still(own: Postgres, home: Home, env: dict[str, str]) -> None:
    """Its sockets answer, and it does not."""
    store = Store.open(home, env)
    add(store)
    own.freeze()
    for act in (lambda: running(store), lambda: store.job("a-1")):
        with pytest.raises(StoreAwayError):
            act()
    own.thaw()
    running(store)
    assert [row.type for row in store.events("a-1")] == ["AgentUp"]
    with pytest.raises(StoreAwayError):
        in_two_halves(store, own.freeze)
    own.thaw()
    assert store.cursor("a-1", 1, 0) == 1
    store.close()


@pytest.mark.usefixtures("impatient")
def test_a_lock_of_another_program(postgres: Postgres, home: Home, env: dict[str, str]) -> None:
    store = Store.open(home, env)
    add(store)
    with postgres.connect(name_of(env)) as other:
        other.execute("BEGIN")
        other.execute("SELECT value FROM meta WHERE key = 'controller' FOR UPDATE")
        with pytest.raises(StoreAwayError, match="timeout"):
            running(store)
        assert store.state("a-1") is State.QUEUED, "it can still be read"
    running(store)
    store.close()


@pytest.mark.usefixtures("impatient")
def test_a_controller_that_stands_still_keeps_no_other_one_out(home: Home, env: dict[str, str]) -> None:
    """It was frozen within a transaction, which holds the lock of all writers; its session ends without it."""
    older, newer = Store.open(home, env), Store.open(home, env)
    add(older)
    older.claim()
    # What waits for the lock may give up just before the session of the older one is ended.
    with pytest.raises(StoreAwayError):
        in_two_halves(older, lambda: wait_for("the newer one has the store", lambda: _tried(newer.claim)))
    with pytest.raises(StoreTakenError):
        running(older)
    assert newer.events("a-1") == []
    older.close()
    newer.close()


def _tried(act: Callable[[], Any]) -> Any:
    try:
        return act()
    except StoreAwayError:
        return None


def test_one_that_takes_no_writes(own: Postgres, home: Home, env: dict[str, str], store: Store) -> None:
    """What a replica says until it is promoted."""
    add(store)
    name = name_of(env)
    own.sql(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    store._engine.dispose()
    with pytest.raises(StoreAwayError, match="read-only"):
        running(store)
    own.sql(f"ALTER DATABASE {name} SET default_transaction_read_only = off")
    store._engine.dispose()
    running(store)


def test_connections_that_the_server_ended_are_not_used_again(own: Postgres, store: Store) -> None:
    add(store)
    own.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'orch'")
    running(store)


def test_it_lets_nobody_in(own: Postgres, home: Home, env: dict[str, str]) -> None:
    own.sql(f"ALTER DATABASE {name_of(env)} ALLOW_CONNECTIONS false")
    with pytest.raises(NoServer, match="cannot be opened") as refused:
        Store.open(home, env)
    assert own.password not in str(refused.value)


def test_a_wrong_password_is_said_and_not_shown(home: Home, env: dict[str, str], postgres: Postgres) -> None:
    wrong = {"ORCH_STORE": env["ORCH_STORE"].replace(postgres.password, "pa55word")}
    with pytest.raises(NoServer, match="authentication") as refused:
        Store.open(home, wrong)
    assert "pa55word" not in str(refused.value)


def test_the_url_has_the_last_word_on_the_connection(home: Home, env: dict[str, str]) -> None:
    store = Store.open(home, {"ORCH_STORE": env["ORCH_STORE"] + "?application_name=mine&connect_timeout=3"})
    with store._begin() as connection:
        assert connection.execute(text("SHOW application_name")).scalar_one() == "mine"
        assert connection.execute(text("SHOW statement_timeout")).scalar_one() == "15s"
    store.close()


def test_two_that_open_a_new_store_at_once(home: Home, env: dict[str, str]) -> None:
    stores: list[Store] = []
    start = threading.Barrier(4)

    def work() -> None:
        start.wait()
        stores.append(Store.open(home, env))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(store.migrated_from > 0 for store in stores) == [False, True, True, True]
    assert sorted(store.claim() for store in stores) == [1, 2, 3, 4]
    for store in stores:
        store.close()
