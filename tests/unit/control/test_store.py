"""The store, on SQLite and on PostgreSQL."""

import math
import threading

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DatabaseError, IntegrityError

from orch.control.database import TEXT_CHARS_MAX
from orch.control.home import Home
from orch.control.rows import CheckpointRow, ProgressRow
from orch.control.store import Store, StoreTakenError
from orch.model.errors import NoSuchJob
from orch.model.states import JobState, State
from support.stores import BOTH, add, outside

pytestmark = BOTH


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


def test_events_can_only_be_added(home: Home, env: dict[str, str], store: Store) -> None:
    add(store)
    with store.transaction() as transaction:
        transaction.append_event("a-1", {"type": "AgentUp"}, t_us=2)
    for statement in ("UPDATE events SET t_us = 0", "DELETE FROM events"):
        with pytest.raises(DatabaseError, match="append-only"), outside(home, env) as connection:
            connection.execute(text(statement))
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


def test_a_controller_that_was_replaced_writes_no_more(home: Home, env: dict[str, str], store: Store) -> None:
    add(store)
    assert store.claim() == 1
    add(store, "b-1")
    other = Store.open(home, env)
    assert other.claim() == 2
    with pytest.raises(StoreTakenError, match="controller 2"), store.transaction() as transaction:
        transaction.append_event("a-1", {"type": "x"}, t_us=1)
    with pytest.raises(StoreTakenError):
        store.command_done(1)
    add(other, "c-1")
    assert [row.id for row in store.jobs()] == ["c-1", "b-1", "a-1"], "it may still read"
    other.close()


def test_many_threads_and_two_stores_lose_nothing(home: Home, env: dict[str, str], store: Store) -> None:
    add(store)
    other = Store.open(home, env)
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
