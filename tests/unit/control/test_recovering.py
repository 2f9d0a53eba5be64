"""Jobs as their storage knows them: read back, written into a store again, once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orch.control.ends import record_end
from orch.control.home import Home
from orch.control.jobrecord import (
    ATTEMPTS_UNSEEN,
    StoredJob,
    UnreadableJobError,
    end_path,
    end_record,
    job_record,
    read_job,
)
from orch.control.lifecycle import advance
from orch.control.lifecycle_invariants import validate
from orch.control.recovering import put_back, rebuilt, set_secrets
from orch.control.rows import NewJob
from orch.control.secrets import SecretBox
from orch.control.store import Store, now_us
from orch.model.errors import WrongUse
from orch.model.events import TurnCame
from orch.model.spec import JobSpec
from orch.model.states import JobState, State
from orch_workers.checkpoint import Catalog, Storage, open_storage

JOB = "digits-x7k2m"


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path / "storage"))


def spec_of(storage: Storage, **more: Any) -> JobSpec:
    return JobSpec.model_validate(
        {"name": "digits", "run": "true", "checkpoint": {"storage": storage.url}} | more
    )


def submitted(storage: Storage, **more: Any) -> JobSpec:
    spec = spec_of(storage, **more)
    record = job_record(JOB, spec.model_dump(mode="json"), {"digest": "0" * 64}, seed=7, unprotected=True)
    storage.create(f"{JOB}/job.json", record)
    return spec


def read(storage: Storage) -> StoredJob:
    found = read_job(storage, JOB)
    assert found is not None
    return found


def test_a_job_that_never_ran(storage: Storage) -> None:
    before_us = now_us()
    spec = submitted(storage)
    found = read(storage)
    assert (found.seed, found.unprotected, found.code) == (7, True, {"digest": "0" * 64})
    assert (found.attempt, found.step, found.end) == (0, None, None)
    assert abs(found.submitted_us - before_us) < 60_000_000
    assert JobSpec.model_validate(found.spec) == spec


def test_what_is_no_job(storage: Storage) -> None:
    assert read_job(storage, JOB) is None
    storage.create(f"{JOB}/job.json", b"{}")
    with pytest.raises(UnreadableJobError, match="another version"):
        read_job(storage, JOB)
    storage.create("b-1/job.json", b"[")
    with pytest.raises(UnreadableJobError, match=r"b-1/job\.json does not read"):
        read_job(storage, "b-1")
    storage.create("c-1/job.json", job_record(JOB, {}, None, seed=1, unprotected=False))
    with pytest.raises(UnreadableJobError, match="not the record of c-1"):
        read_job(storage, "c-1")


def test_its_next_attempt_is_above_everything_that_was_written(storage: Storage) -> None:
    spec = submitted(storage)
    Catalog(storage, JOB).begin_generation((3, 1))
    # An attempt that wrote a shard and nothing else may still be alive somewhere.
    storage.create(f"{JOB}/shards/000005.000002/000000000009/0-0.safetensors", b"x")
    found = read(storage)
    assert found.attempt == 5
    state = rebuilt(found, spec, storage.url, now_us()).state
    validate(state)
    after, _ = advance(state, TurnCame(), now_us())
    assert after.attempt == 5 + ATTEMPTS_UNSEEN + 1
    validate(after)


def test_an_end_is_told_from_a_job_that_goes_on(storage: Storage) -> None:
    submitted(storage)
    Catalog(storage, JOB).begin_generation((2, 1))
    over = JobState(job=JOB, state=State.FAILED, reason="crash loop", exit_code=3, attempt=2, ended_us=99)
    storage.create(end_path(JOB, 2), end_record(over))
    assert read(storage).end == {"state": "FAILED", "reason": "crash loop", "exit_code": 3, "ended_us": 99}
    Catalog(storage, JOB).begin_generation((3, 1))
    found = read(storage)
    assert (found.attempt, found.end) == (3, None), "it was resumed since"


def test_it_is_put_back_once(storage: Storage, store: Store) -> None:
    spec = submitted(storage)
    found = read(storage)
    assert put_back(store, found, spec, storage.url) == "resumed"
    first = store.job(JOB)
    assert (first.state, first.name, first.unprotected) == ("QUEUED", "digits", True)
    assert "attempt 100" in first.reason
    assert put_back(store, found, spec, storage.url) == "known"
    assert store.job(JOB) == first
    [event] = store.events(JOB)
    assert (event.type, event.data["recovered_from"]) == ("Submitted", storage.url)


def test_one_that_was_over_stays_over(storage: Storage, store: Store) -> None:
    spec = submitted(storage)
    ended_us = now_us()
    over = JobState(job=JOB, state=State.CANCELLED, reason="cancelled on request", ended_us=ended_us)
    storage.create(end_path(JOB, 0), end_record(over))
    assert put_back(store, read(storage), spec, storage.url) == "ended"
    state = store.lifecycle(JOB)
    validate(state)
    assert (state.state, state.ended_us) == (State.CANCELLED, ended_us)
    assert store.unfinished() == []


def test_checkpoints_are_known_again(storage: Storage) -> None:
    spec = submitted(storage)
    point = {
        "generation": "000001.000001", "step": 40, "epoch": 2, "committed_us": 5, "size_bytes": 9, "quarantined": None,
    }  # fmt: skip
    stored = StoredJob(
        job=JOB, spec=spec.model_dump(mode="json"), code=None, seed=1, unprotected=False, submitted_us=1,
        attempt=1, step=40, committed=True, checkpoints=(point, point | {"step": 30, "quarantined": "bad"}), end=None,
    )  # fmt: skip
    found = rebuilt(stored, spec, "there", 100)
    assert found.state.history["committed_step"] == 40, "so that it never starts over in silence"
    damaged = rebuilt(
        StoredJob(**{**{n: getattr(stored, n) for n in StoredJob.__dataclass_fields__}, "step": None}),
        spec,
        "there",
        100,
    )
    assert damaged.state.history["committed_step"] == 40
    assert "none that can be restored" in damaged.state.reason


def test_secrets_are_asked_for_and_taken(storage: Storage, home: Home, store: Store) -> None:
    spec = submitted(storage, secrets=["KEY"])
    assert put_back(store, read(storage), spec, storage.url) == "blocked"
    blocked = store.job(JOB)
    assert blocked.state == "BLOCKED"
    assert f"orch secrets {JOB}" in blocked.reason
    assert "KEY" in blocked.reason

    def apply(job: str, event: Any) -> None:
        with store.transaction() as transaction:
            state, _ = advance(transaction.lifecycle(job), event, now_us())
            transaction.save(state)

    box = SecretBox.of(home)
    for wrong in ({}, {"KEY": "1", "OTHER": "2"}, {"OTHER": "2"}):
        with pytest.raises(WrongUse, match="KEY"):
            set_secrets(store, box, JOB, wrong, apply)
    set_secrets(store, box, JOB, {"KEY": "new"}, apply)
    assert box.unseal(JOB, store.sealed_secrets(JOB)) == {"KEY": "new"}
    assert store.state(JOB) is State.QUEUED
    validate(store.lifecycle(JOB))


def test_an_end_is_written_once_and_always_the_same(storage: Storage, home: Home, store: Store) -> None:
    state = JobState(job=JOB, state=State.SUCCEEDED, reason="done", attempt=4, submitted_us=1, ended_us=9)
    row = NewJob(name="digits", spec=spec_of(storage).model_dump(mode="json"), sealed_secrets={})
    with store.transaction() as transaction:
        transaction.insert_job(row, state)
    record_end(store, home, JOB)
    record_end(store, home, JOB)
    written = json.loads(storage.read(end_path(JOB, 4)))
    assert (written["state"], written["attempt"], written["ended_us"]) == ("SUCCEEDED", 4, 9)


def test_folders_are_those_right_below(storage: Storage) -> None:
    for path in ("a/x", "a/b/y", "c/d/e/z", "file"):
        storage.create(path, b"1")
    assert list(storage.folders()) == ["a", "c"]
    assert list(Storage.folders(storage)) == ["a", "c"]
