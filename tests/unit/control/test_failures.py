"""What the store knows of failures, for the agent that chooses an interval."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orch.control import failures
from orch.control.configs import agent_config
from orch.control.failures import observed
from orch.control.rows import NewJob, ProgressRow
from orch.control.store import Store
from orch.model.commands import StartAgents
from orch.model.spec import JobSpec
from orch.model.states import JobState, State
from orch_workers.config import WorkerConfig
from orch_workers.pacing import Pacing

SECOND = 1_000_000
STORAGE = {"storage": {"url": "/s"}}


def add(store: Store, job: str, *, state: State = State.SUCCEEDED, at_s: int = 0, **more: Any) -> None:
    spec = JobSpec.model_validate({"run": "x", "checkpoint": {**STORAGE, **more.pop("checkpoint", {})}})
    new = NewJob(name="a", spec=spec.model_dump(mode="json"), sealed_secrets={})
    values = {"submitted_us": at_s * SECOND, "started_us": at_s * SECOND, **more}
    with store.transaction() as transaction:
        transaction.insert_job(new, JobState(job=job, state=state, **values))


def charged(**counts: int) -> dict[str, Any]:
    return {"failures": 0, "hangs": 0, "preemptions": 0, "given_back": 0, "marks": [], **counts}


def test_failures_and_running_time_of_this_job_and_of_all_others(store: Store) -> None:
    add(
        store,
        "a-1",
        state=State.RUNNING,
        spent_us={"QUEUED": 5 * SECOND, "RUNNING": 60 * SECOND},
        charges=charged(failures=1, given_back=2),
    )
    add(store, "b-1", spent_us={"RUNNING": 100 * SECOND, "RECOVERING": 9 * SECOND}, charges=charged(hangs=1))
    add(store, "c-1", spent_us={"RUNNING": 40 * SECOND}, charges=charged(preemptions=3))
    add(store, "never-1", state=State.CANCELLED, started_us=None, spent_us={"QUEUED": 10**9})
    found = observed(store, "a-1", 95 * SECOND)
    assert found["job"] == {"failures": 3, "running_s": 90.0}, "30 s since the last event are running, too"
    assert found["others"] == {"failures": 4, "running_s": 140.0}
    assert (found["blocked_s"], found["durable_s"]) == (None, None)
    assert observed(store, "a-1", 95 * SECOND, others=False) == found | {
        "others": {"failures": 0, "running_s": 0.0}
    }


def test_only_the_newest_jobs_tell_of_the_cluster_and_the_job_itself_always(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failures, "JOBS_LOOKED_AT_MAX", 2)
    for number in range(4):
        add(store, f"job-{number}", at_s=number, charges=charged(failures=10**number))
    assert observed(store, "job-0", 0)["others"]["failures"] == 1100
    assert observed(store, "job-0", 0)["job"]["failures"] == 1


def test_what_saves_have_cost_before_is_handed_on(store: Store) -> None:
    add(store, "a-1")
    told = {"blocked_s": 0.25, "durable_s": 3.0, "sentence": "every 84 s"}
    row = ProgressRow(
        job="a-1", rank=0, generation="000001.000001", t_us=1, metrics={}, usage={}, checkpointing=told
    )
    store.put_progress(row)
    found = observed(store, "a-1", 0)
    assert (found["blocked_s"], found["durable_s"]) == (0.25, 3.0)


def config(store: Store, tmp_path: Path, **checkpoint: Any) -> WorkerConfig:
    add(store, "a-1", checkpoint=checkpoint)
    command = StartAgents(attempt=1, ranks=(0,), gang_attempt=1)
    seen = observed(store, "a-1", 0)
    made = agent_config(store.job("a-1"), command, 0, tmp_path, seen)
    # As it travels through Ray.
    return WorkerConfig.from_dict(made.to_dict())


def test_the_agent_is_told_all_of_it(store: Store, tmp_path: Path) -> None:
    keep = {
        "last": 3,
        "every_hours": 2,
        "every_steps": 100,
        "min_age": "30m",
        "best": {"metric": "acc", "mode": "max", "count": 2},
    }
    made = config(store, tmp_path, every="auto", max_overhead="2%", keep=keep)
    assert (made.every_auto, made.max_overhead) == (True, 0.02)
    assert made.keep == {
        "last": 3,
        "every_hours": 2,
        "every_steps": 100,
        "best": {"metric": "acc", "mode": "max", "count": 2},
        "min_age_s": 1800,
    }
    assert Pacing.of(made).status()["sentence"].startswith("every 60 s (auto: no save has been measured")


def test_without_a_word_it_is_ten_minutes_and_the_newest_five(store: Store, tmp_path: Path) -> None:
    made = config(store, tmp_path)
    assert (made.every_auto, made.max_overhead, made.keep["last"]) == (False, None, 5)
    assert Pacing.of(made).every.seconds == 600
