import math
import sqlite3
import stat
import threading

import pytest
from sqlalchemy import Connection, text
from sqlalchemy.exc import IntegrityError

from orch.control import schema
from orch.control.database import TEXT_CHARS_MAX, open_engine, store_url
from orch.control.home import Home
from orch.control.rows import CheckpointRow, NewJob, ProgressRow
from orch.control.store import Store, StoreTakenError
from orch.model.errors import NoServer, NoSuchJob, WrongUse
from orch.model.states import JobState, State


def add(
    store: Store, job: str = "a-1", state: State = State.QUEUED, at: int = 1000, **values: object
) -> None:
    values = {"name": "a", "spec": {"run": "x"}, "sealed_secrets": {}} | values
    with store.transaction() as transaction:
        transaction.insert_job(NewJob(**values), JobState(job=job, state=state, submitted_us=at, since_us=at))


def test_what_follows_from_an_event_is_written_with_it(store: Store) -> None:
    add(store)
    with store.transaction() as transaction:
        state = transaction.lifecycle("a-1")
        assert state.state is State.QUEUED
        assert transaction.consume("a-1", 1, 0, 5)
        seq = transaction.append_event("a-1", {"type": "AgentUp", "rank": 0}, t_us=2, decision="runs")
        transaction.save(JobState(job="a-1", state=State.RUNNING, attempt=1, restart=2, submitted_us=1000))
        transaction.put_attempt("a-1", 1, started_us=2, node="n1")
        transaction.put_restart("a-1", 1, 2, started_us=3, restored_step=7)
        transaction.put_checkpoint("a-1", "000001.000002", 9, committed_us=4, size_bytes=10)
        command = transaction.enqueue("a-1", {"type": "StopAgents", "attempt": 1}, t_us=2)
    row = store.job("a-1")
    assert (row.state, row.attempt, row.restart, row.revision) == ("RUNNING", 1, 2, 2)
    assert store.lifecycle("a-1").state is State.RUNNING
    [event] = store.events("a-1")
    assert (event.seq, event.type, event.data, event.decision) == (
        seq,
        "AgentUp",
        {"type": "AgentUp", "rank": 0},
        "runs",
    )
    [pending] = store.pending_commands()
    assert (pending.seq, pending.type, pending.data["attempt"]) == (command, "StopAgents", 1)
    assert store.cursor("a-1", 1, 0) == 5
    assert store.attempts("a-1")[0].node == "n1"
    assert store.restarts("a-1")[0].restored_step == 7
    assert store.last_checkpoints(["a-1"])["a-1"].step == 9


def test_an_exception_undoes_everything(store: Store) -> None:
    add(store)

    def half_done() -> None:
        with store.transaction() as transaction:
            transaction.append_event("a-1", {"type": "AgentUp"}, t_us=2)
            transaction.enqueue("a-1", {"type": "CloseJob"}, t_us=2)
            transaction.consume("a-1", 1, 0, 5)
            transaction.save(JobState(job="a-1", state=State.RUNNING))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        half_done()
    assert store.events("a-1") == []
    assert store.pending_commands() == []
    assert store.cursor("a-1", 1, 0) == 0
    assert store.state("a-1") is State.QUEUED


def test_a_report_is_consumed_once(store: Store) -> None:
    add(store)
    taken = []
    for position in (1, 2, 2, 1, 3):
        with store.transaction() as transaction:
            taken.append(transaction.consume("a-1", 1, 0, position))
    assert taken == [True, True, False, False, True]
    with store.transaction() as transaction:
        assert transaction.consume("a-1", 2, 0, 1), "another attempt's agent counts for itself"
        assert transaction.consume("a-1", 1, 1, 1), "so does another rank's"


def test_commands_wait_until_they_are_done(store: Store) -> None:
    add(store)
    with store.transaction() as transaction:
        first, second = (transaction.enqueue("a-1", {"type": "CloseJob"}, t_us=1) for _ in range(2))
    assert store.command_failed(first, "Ray is away") == 1
    assert store.command_failed(first, "Ray is away") == 2
    assert [(row.seq, row.tries, row.last_error) for row in store.pending_commands()] == [
        (first, 2, "Ray is away"),
        (second, 0, None),
    ]
    store.command_done(first)
    store.command_done(first)
    assert [row.seq for row in store.pending_commands()] == [second]


def test_events_can_only_be_added(home: Home, store: Store) -> None:
    add(store)
    with store.transaction() as transaction:
        transaction.append_event("a-1", {"type": "AgentUp"}, t_us=2)
    for statement in ("UPDATE events SET t_us = 0", "DELETE FROM events"):
        connection = sqlite3.connect(home.database)
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            connection.execute(statement)
        connection.close()
    assert len(store.events("a-1")) == 1


def test_events_are_ordered_by_number_and_paged(store: Store) -> None:
    add(store)
    add(store, "b-1")
    with store.transaction() as transaction:
        for t_us in (50, 10, 30):
            transaction.append_event("a-1", {"type": "Progressed"}, t_us=t_us)
            transaction.append_event("b-1", {"type": "Progressed"}, t_us=t_us)
    assert [row.t_us for row in store.events("a-1")] == [50, 10, 30]
    first = store.events("a-1", limit=1)[0]
    assert [row.t_us for row in store.events("a-1", after=first.seq)] == [10, 30]


def test_jobs_newest_first_by_state_and_page(store: Store) -> None:
    for number in range(5):
        state = State.QUEUED if number % 2 else State.SUCCEEDED
        add(store, f"a-{number}", state, at=1000 + number // 2)
    assert [row.id for row in store.jobs()] == ["a-4", "a-3", "a-2", "a-1", "a-0"]
    assert [row.id for row in store.jobs(states=["QUEUED"])] == ["a-3", "a-1"]
    page = store.jobs(limit=2)
    last = page[-1]
    assert [row.id for row in store.jobs(before=(last.submitted_us, last.id))] == ["a-2", "a-1", "a-0"]
    assert store.count_by_state() == {"QUEUED": 2, "SUCCEEDED": 3}
    assert [state.job for state in store.unfinished()] == ["a-1", "a-3"]


def test_unknown_jobs(store: Store) -> None:
    for look in (store.job, store.lifecycle, store.state):
        with pytest.raises(NoSuchJob, match="'x'"):
            look("x")
    with pytest.raises(NoSuchJob), store.transaction() as transaction:
        transaction.save(JobState(job="x", state=State.QUEUED))


def test_one_submit_is_one_job(store: Store) -> None:
    add(store, request="r1")
    assert store.job_of_request("r1") == "a-1"
    with pytest.raises(IntegrityError):
        add(store, "b-1", request="r1")
    add(store, "b-1")
    add(store, "c-1")


def test_checkpoints(store: Store) -> None:
    add(store)
    add(store, "b-1")
    with store.transaction() as transaction:
        for step in (10, 20, 30):
            transaction.put_checkpoint("a-1", "000001.000001", step, committed_us=step)
        transaction.mark_checkpoint("a-1", "000001.000001", 10, "deleted", reason="retention")
        transaction.mark_checkpoint("a-1", "000001.000001", 30, "quarantined", reason="digest")
        transaction.mark_checkpoint("a-1", "000001.000001", 99, "deleted")
    assert [(row.step, row.state) for row in store.checkpoints("a-1")] == [
        (30, "quarantined"),
        (20, "committed"),
        (10, "deleted"),
    ]
    assert store.last_checkpoints(["a-1", "b-1"]) == {
        "a-1": CheckpointRow(job="a-1", generation="000001.000001", step=20, committed_us=20)
    }


def progress(generation: str, step: int, **values: object) -> ProgressRow:
    values = {"metrics": {}, "usage": {}} | values
    return ProgressRow(job="a-1", rank=0, generation=generation, t_us=1, step=step, **values)


def test_progress_of_an_older_generation_never_replaces_a_newer_one(store: Store) -> None:
    add(store)
    store.put_progress(progress("000001.000002", 5))
    store.put_progress(progress("000001.000001", 9))
    assert store.progress(["a-1"])["a-1"].step == 5
    store.put_progress(progress("000002.000001", 4))
    assert store.progress(["a-1"])["a-1"].step == 4


def test_numbers_that_are_not_finite_survive(store: Store) -> None:
    add(store)
    store.put_progress(progress("000001.000001", 1, metrics={"loss": math.nan, "x": math.inf}))
    found = store.progress(["a-1"])["a-1"].metrics
    assert math.isnan(found["loss"])
    assert found["x"] == math.inf


def test_texts_that_databases_refuse_are_stored_all_the_same(store: Store) -> None:
    add(store)
    with store.transaction() as transaction:
        transaction.append_event("a-1", {"type": "x", "t": "\0\ud800"}, t_us=1, evidence="a\0b\ud800c")
        transaction.put_attempt("a-1", 1, reason="é" * (TEXT_CHARS_MAX + 100))
    [event] = store.events("a-1")
    assert event.evidence == "a\ufffdb?c"
    assert event.data["t"] == "\0\ud800"
    reason = store.attempts("a-1")[0].reason
    assert reason is not None
    assert "characters left out" in reason
    assert len(reason) < TEXT_CHARS_MAX + 100


def test_notes_are_kept_up_to_a_limit(store: Store) -> None:
    add(store)
    with store.transaction() as transaction:
        for number in range(60):
            transaction.add_note("a-1", f"note {number}", t_us=number)
    notes = store.job("a-1").notes
    assert len(notes) == 50
    assert notes[-1] == {"t_us": 59, "text": "note 59"}


def test_secrets_are_kept_as_they_were_sealed(store: Store) -> None:
    add(store, sealed_secrets={"KEY": b"\x00\xffsealed"})
    with store.transaction() as transaction:
        transaction.put_secret("a-1", "OTHER", b"1")
        transaction.put_secret("a-1", "OTHER", b"2")
    assert store.sealed_secrets("a-1") == {"KEY": b"\x00\xffsealed", "OTHER": b"2"}


def test_a_controller_that_was_replaced_writes_no_more(home: Home, store: Store) -> None:
    add(store)
    assert store.claim() == 1
    add(store, "b-1")
    other = Store.open(home, {})
    assert other.claim() == 2
    with pytest.raises(StoreTakenError, match="controller 2"), store.transaction() as transaction:
        transaction.append_event("a-1", {"type": "x"}, t_us=1)
    with pytest.raises(StoreTakenError):
        store.command_done(1)
    add(other, "c-1")
    assert [row.id for row in store.jobs()] == ["c-1", "b-1", "a-1"], "it may still read"
    other.close()


def test_many_threads_and_two_stores_lose_nothing(home: Home, store: Store) -> None:
    add(store)
    other = Store.open(home, {})
    failures: list[BaseException] = []

    def work(mine: Store) -> None:
        try:
            for _ in range(10):
                with mine.transaction() as transaction:
                    state = transaction.lifecycle("a-1")
                    transaction.save(JobState(job="a-1", state=State.QUEUED, attempt=state.attempt + 1))
                    transaction.append_event("a-1", {"type": "TurnCame"}, t_us=1)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(one,)) for one in (store, store, other, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    other.close()
    assert failures == []
    assert store.lifecycle("a-1").attempt == 40
    assert len(store.events("a-1")) == 40


def test_a_transaction_inside_a_transaction_is_a_mistake_not_a_deadlock(store: Store) -> None:
    add(store)
    with store.transaction(), pytest.raises(RuntimeError, match="inside another"), store.transaction():
        pass
    with store.transaction() as transaction:
        transaction.lifecycle("a-1")


def test_file_is_private_and_in_wal_mode(home: Home, store: Store) -> None:
    add(store)
    for path in home.root.glob("orch.db*"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    connection = sqlite3.connect(home.database)
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()


def test_what_was_written_is_there_after_opening_again(home: Home) -> None:
    first = Store.open(home, {})
    assert first.migrated_from == 0
    add(first)
    first.close()
    second = Store.open(home, {})
    assert second.migrated_from == len(schema.MIGRATIONS) + 1
    assert second.job("a-1").spec == {"run": "x"}
    second.close()


def test_migration_takes_an_older_store_forward_once(home: Home) -> None:
    store = Store.open(home, {})
    add(store)
    store.close()
    calls: list[int] = []

    def second(connection: Connection) -> None:
        calls.append(2)
        connection.execute(text("ALTER TABLE jobs ADD COLUMN colour TEXT DEFAULT 'red'"))

    def third(connection: Connection) -> None:
        calls.append(3)
        connection.execute(text("UPDATE jobs SET colour = 'blue'"))

    engine = open_engine(store_url(home, {}))
    now = len(schema.MIGRATIONS) + 1
    for expected in (now, now + 2):
        with engine.connect().execution_options(orch_write=True) as connection, connection.begin():
            assert schema.migrate(connection, (*schema.MIGRATIONS, second, third)) == expected
    with engine.connect() as connection:
        assert connection.execute(text("SELECT colour FROM jobs")).scalar_one() == "blue"
    engine.dispose()
    assert calls == [2, 3]


def test_a_store_of_the_first_version_is_brought_forward(home: Home) -> None:
    store = Store.open(home, {})
    add(store)
    store.close()
    engine = open_engine(store_url(home, {}))
    with engine.connect().execution_options(orch_write=True) as connection, connection.begin():
        connection.execute(text("ALTER TABLE progress DROP COLUMN checkpointing"))
        connection.execute(text("UPDATE meta SET value = '1' WHERE key = 'schema_version'"))
    engine.dispose()
    store = Store.open(home, {})
    assert store.migrated_from == 1
    row = ProgressRow(
        job="a-1", rank=0, generation="000001.000001", t_us=1, metrics={}, usage={}, checkpointing={"a": 1}
    )
    store.put_progress(row)
    assert store.progress(["a-1"])["a-1"].checkpointing == {"a": 1}
    store.close()


def test_a_migration_that_fails_changes_nothing(home: Home) -> None:
    Store.open(home, {}).close()

    def broken(connection: Connection) -> None:
        connection.execute(text("ALTER TABLE jobs ADD COLUMN colour TEXT"))
        raise ZeroDivisionError

    engine = open_engine(store_url(home, {}))
    with (
        pytest.raises(ZeroDivisionError),
        engine.connect().execution_options(orch_write=True) as connection,
        connection.begin(),
    ):
        schema.migrate(connection, (*schema.MIGRATIONS, broken))
    with engine.connect() as connection:
        columns = [row[1] for row in connection.execute(text("PRAGMA table_info(jobs)"))]
        assert "colour" not in columns
    engine.dispose()
    Store.open(home, {}).close()


def test_a_store_of_a_newer_orch_is_refused(home: Home) -> None:
    Store.open(home, {}).close()
    connection = sqlite3.connect(home.database)
    connection.execute("UPDATE meta SET value = '99' WHERE key = 'schema_version'")
    connection.commit()
    connection.close()
    with pytest.raises(WrongUse, match="schema version 99"):
        Store.open(home, {})


@pytest.mark.parametrize(
    "statement", ["CREATE TABLE jobs (id TEXT)", "CREATE TABLE meta (key TEXT, value TEXT)"]
)
def test_a_database_of_somebody_else_is_left_alone(home: Home, statement: str) -> None:
    connection = sqlite3.connect(home.database)
    connection.execute(statement)
    connection.close()
    with pytest.raises(WrongUse, match="database of its own"):
        Store.open(home, {})


def test_a_file_that_is_no_database_is_refused_with_a_sentence(home: Home) -> None:
    home.database.write_text("hello " * 1000)
    with pytest.raises(NoServer, match="cannot be opened"):
        Store.open(home, {})


def test_which_store(home: Home) -> None:
    assert store_url(home, {}).database == str(home.database)
    url = store_url(home, {"ORCH_STORE": "postgresql+psycopg://me:pass@host/orch"})
    assert url.drivername == "postgresql+psycopg"


@pytest.mark.parametrize(
    "given",
    ["mysql://me:pa55@host/db", "postgresql://me:pa55@host/db", "pa55", "sqlite://", "sqlite:///:memory:"],
)
def test_other_databases_are_refused_without_showing_a_password(home: Home, given: str) -> None:
    with pytest.raises(WrongUse, match="ORCH_STORE") as refused:
        store_url(home, {"ORCH_STORE": given})
    assert "pa55" not in str(refused.value)


def test_a_password_is_not_shown_when_the_store_cannot_be_opened() -> None:
    # Nothing listens on port 1; where psycopg is not installed, that is the reason given.
    with pytest.raises(NoServer, match="cannot be opened") as refused:
        Store("postgresql+psycopg://me:pa55@127.0.0.1:1/orch")
    assert "pa55" not in str(refused.value)
