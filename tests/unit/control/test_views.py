import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orch.control.rows import NewJob, ProgressRow
from orch.control.store import Store
from orch.control.views import format_time, job_detail, job_events, job_list, json_safe, parse_time_us
from orch.model.errors import NoSuchJob
from orch.model.states import JobState, State
from orch_policies.goodput import BUCKETS, Books

SECOND = 1_000_000
T0 = 1_700_000_000 * SECOND


def save(store: Store, job: str = "a-1", **values: Any) -> None:
    values = {"state": State.QUEUED, "submitted_us": T0, "since_us": T0} | values
    state = JobState(job=job, **values)
    with store.transaction() as transaction:
        if any(row.id == job for row in store.jobs()):
            transaction.save(state)
        else:
            new = NewJob(name="a", spec={"run": "x"}, sealed_secrets={}, priority=3, code={"digest": "d"})
            transaction.insert_job(new, state)


def progress(**values: Any) -> ProgressRow:
    values = {"generation": "000001.000001", "t_us": T0, "metrics": {}, "usage": {}} | values
    return ProgressRow(job="a-1", rank=0, **values)


def test_a_job_that_waits(store: Store) -> None:
    save(store, reason="waits for its turn", unprotected=True)
    [summary] = job_list(store, now_us=T0 + 5 * SECOND)
    assert summary == {
        "id": "a-1",
        "name": "a",
        "state": "QUEUED",
        "reason": "waits for its turn",
        "flags": ["UNPROTECTED"],
        "submitted": "2023-11-14T22:13:20.000000Z",
        "started": None,
        "ended": None,
        "priority": 3,
        "attempt": 0,
        "restarts": 0,
        "step": None,
        "epoch": None,
        "metrics": {},
        "steps_per_s": None,
        "last_checkpoint": None,
        "goodput": None,
    }


def test_a_job_that_recovered_twice(store: Store) -> None:
    save(
        store, state=State.RUNNING, attempt=2, restart=1, started_us=T0 + SECOND, budgets={"max_failures": 3}
    )
    with store.transaction() as transaction:
        transaction.put_attempt("a-1", 1, started_us=T0, node="n1", reason="its turn came")
        transaction.put_restart("a-1", 1, 1, started_us=T0 + SECOND)
        transaction.put_restart(
            "a-1",
            1,
            2,
            started_us=T0 + 2 * SECOND,
            cause="SIGKILL",
            evidence="signal 9",
            decision="restart in place",
            charged_to="failures",
        )
        transaction.put_attempt("a-1", 2, started_us=T0 + 9 * SECOND, node="n2")
        transaction.put_restart(
            "a-1",
            2,
            1,
            started_us=T0 + 9 * SECOND,
            restored_step=40,
            restored_from="memory",
            lost_steps=2,
            recovery_us=1_500_000,
        )
        transaction.put_checkpoint(
            "a-1", "000001.000001", 40, committed_us=T0 + 4 * SECOND, duration_us=250_000
        )
        pace = {"sentence": "every 84 s", "interval_s": 84.0, "blocked_s": math.inf}
        told = progress(step=50, epoch=2, steps_per_s=4.0, metrics={"loss": math.nan}, checkpointing=pace)
        transaction.put_progress(told)
        transaction.add_note("a-1", "a start from nothing", t_us=T0)
    detail = job_detail(store, "a-1", now_us=T0 + 10 * SECOND)
    assert (detail["restarts"], detail["step"], detail["epoch"]) == (2, 50, 2)
    assert detail["metrics"] == {"loss": "nan"}
    assert detail["checkpointing"] == {"sentence": "every 84 s", "interval_s": 84.0, "blocked_s": "inf"}
    assert detail["last_checkpoint"] == {"step": 40, "time": "2023-11-14T22:13:24.000000Z", "age_s": 6.0}
    assert [attempt["node"] for attempt in detail["attempts"]] == ["n1", "n2"]
    first, second = detail["attempts"][0]["restarts"], detail["attempts"][1]["restarts"]
    assert [restart["cause"] for restart in first] == [None, "SIGKILL"]
    assert second[0]["restored_from"] == "memory"
    assert (second[0]["lost_steps"], second[0]["recovery_s"]) == (2, 1.5)
    assert detail["checkpoints"][0]["duration_s"] == 0.25
    assert detail["budgets"] == {"max_failures": 3}
    assert detail["notes"] == [{"time": "2023-11-14T22:13:20.000000Z", "text": "a start from nothing"}]
    assert (detail["spec"], detail["code"]) == ({"run": "x"}, {"digest": "d"})
    json.dumps(detail, allow_nan=False)


def test_the_ledger_sums_to_the_time_from_submit_to_end(store: Store) -> None:
    us = {
        "queued": 2 * SECOND,
        "starting": SECOND,
        "productive": 7 * SECOND,
        "lost": 3 * SECOND,
        "saving": SECOND,
    }
    save(store, state=State.RUNNING, books=Books(us=us).to_dict())
    # 14 s are accounted for; 6 more have passed in RUNNING since the last event.
    detail = job_detail(store, "a-1", now_us=T0 + 20 * SECOND)
    ledger = detail["ledger"]
    spent = {"queued_s": 2.0, "starting_s": 1.0, "productive_s": 13.0, "lost_s": 3.0, "saving_s": 1.0}
    assert ledger == dict.fromkeys((f"{name}_s" for name in BUCKETS), 0.0) | spent
    assert sum(ledger.values()) == 20.0
    assert detail["goodput"] == round(13 / 18, 4)

    save(store, state=State.SUCCEEDED, books=Books(us=us).to_dict(), ended_us=T0 + 14 * SECOND)
    ended = job_detail(store, "a-1", now_us=T0 + 1000 * SECOND)
    assert sum(ended["ledger"].values()) == 14.0
    assert ended["steps_per_s"] is None


def test_a_job_of_a_version_without_books_has_a_ledger_by_its_states(store: Store) -> None:
    spent = {State.QUEUED: 2 * SECOND, State.RUNNING: 10 * SECOND, State.RECOVERING: SECOND}
    save(store, state=State.RUNNING, spent_us=spent)
    ledger = job_detail(store, "a-1", now_us=T0 + 20 * SECOND)["ledger"]
    assert {name: value for name, value in ledger.items() if value} == {
        "queued_s": 2.0,
        "productive_s": 17.0,
        "restarting_s": 1.0,
    }


def test_time_after_the_end_is_no_part_of_the_ledger(store: Store) -> None:
    books = Books(us={"productive": 5 * SECOND, "blocked": 100 * SECOND})
    save(store, state=State.SUCCEEDED, books=books.to_dict(), ended_us=T0 + 5 * SECOND)
    assert sum(job_detail(store, "a-1", now_us=T0 + 500 * SECOND)["ledger"].values()) == 5.0


def test_goodput_survives_a_clock_that_went_back(store: Store) -> None:
    save(store, state=State.RUNNING, spent_us={State.RUNNING: 5 * SECOND})
    detail = job_detail(store, "a-1", now_us=T0 - 100 * SECOND)
    assert min(detail["ledger"].values()) == 0.0
    assert detail["goodput"] is None


def test_how_a_job_failed(store: Store) -> None:
    save(store, state=State.FAILED, reason="r" * 1000, exit_code=3, traceback="Traceback …")
    detail = job_detail(store, "a-1", now_us=T0)
    assert (detail["exit_code"], detail["error"]) == (3, "Traceback …")
    assert len(detail["reason"]) == 1000
    assert len(job_list(store, now_us=T0)[0]["reason"]) == 300


def test_a_long_list_takes_few_queries(store: Store) -> None:
    for number in range(30):
        save(store, f"a-{number}")
    queries: list[str] = []
    from sqlalchemy import event

    event.listen(store._engine, "before_cursor_execute", lambda *args: queries.append(args[2]))
    assert len(job_list(store, now_us=T0)) == 30
    assert len([query for query in queries if query.startswith("SELECT")]) == 4


def test_events(store: Store) -> None:
    save(store)
    assert job_events(store, "a-1") == []
    with store.transaction() as transaction:
        seq = transaction.append_event(
            "a-1",
            {"type": "AgentLost", "rank": 0, "evidence": "ActorDiedError", "value": math.inf},
            t_us=T0,
            cause="agent died",
            decision="place a new one",
        )
    assert job_events(store, "a-1") == [
        {
            "seq": seq,
            "time": "2023-11-14T22:13:20.000000Z",
            "type": "AgentLost",
            "cause": "agent died",
            "evidence": "ActorDiedError",
            "decision": "place a new one",
            "data": {"rank": 0, "evidence": "ActorDiedError", "value": "inf"},
        }
    ]
    assert job_events(store, "a-1", after=seq) == []
    with pytest.raises(NoSuchJob):
        job_events(store, "x")


@given(st.integers(min_value=0, max_value=4_000_000_000 * SECOND))
def test_times_round_trip(t_us: int) -> None:
    text = format_time(t_us)
    assert text is not None
    assert len(text) == 27
    assert parse_time_us(text) == t_us


def test_times_without_a_zone_are_refused() -> None:
    with pytest.raises(ValueError, match="time zone"):
        parse_time_us("2023-11-14T22:13:20")


@given(
    st.recursive(
        st.floats() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_everything_becomes_strict_json(value: Any) -> None:
    json.dumps(json_safe(value), allow_nan=False)
