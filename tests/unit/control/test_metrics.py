"""What Prometheus is told, from what stands in the store."""

from __future__ import annotations

import math
import shutil
import subprocess
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from orch.control.metrics import COUNTERS, GAUGES, Metrics
from orch.control.rows import NewJob, ProgressRow
from orch.control.store import EVENTS_MAX, Store, now_us
from orch.model.states import JobState, State

SECOND = 1_000_000
NODES = [SimpleNamespace(cpus=8.0, gpus=1.0), SimpleNamespace(cpus=4.0, gpus=0.0)]
KILLED = {"type": "RestartDecided", "failure": {"kind": "process_exit", "signal": 9, "step": 52}}


def insert(store: Store, job: str = "a-1", state: State = State.RUNNING, **values: Any) -> None:
    at_us = now_us() - 100 * SECOND
    found = JobState(job=job, state=state, submitted_us=at_us, since_us=at_us, **values)
    with store.transaction() as transaction:
        transaction.insert_job(NewJob(name="a", spec={"run": "x"}, sealed_secrets={}), found)


def tell(store: Store, *documents: dict[str, Any], job: str = "a-1") -> None:
    with store.transaction() as transaction:
        for document in documents:
            transaction.append_event(job, document, t_us=now_us())


def read(metrics: Metrics) -> dict[tuple[str, ...], float]:
    """(name, values of the labels …) → number."""
    return {
        (sample.name, *(sample.labels[name] for name in sorted(sample.labels))): sample.value
        for family in text_string_to_metric_families(metrics.text().decode())
        for sample in family.samples
    }


def counters(metrics: Metrics) -> dict[tuple[str, ...], float]:
    return {name: number for name, number in read(metrics).items() if name[0] in COUNTERS}


def of(store: Store) -> Metrics:
    return Metrics(store, lambda: NODES, "1.2.3")  # type: ignore[arg-type, return-value]


def test_a_server_without_jobs(store: Store) -> None:
    found = read(of(store))
    assert found["orch_info", "1.2.3"] == 1
    assert found["orch_store_writable",] == 1
    assert (found["orch_nodes",], found["orch_cluster_cpus",], found["orch_cluster_gpus",]) == (2, 12, 1)
    assert {found["orch_jobs", state.value] for state in State} == {0}
    assert found["orch_checkpoints_total",] == 0, "an alert on its growth needs the zero"


def test_a_job_at_work(store: Store) -> None:
    insert(store, started_us=now_us() - 60 * SECOND, unprotected=True)
    with store.transaction() as transaction:
        transaction.put_checkpoint("a-1", "000001.000001", 40, committed_us=now_us() - 30 * SECOND)
    gpu = {"index": 3, "busy_percent": 87, "memory_used_bytes": 5, "memory_total_bytes": 9}
    store.put_progress(
        ProgressRow(
            job="a-1", rank=0, generation="000001.000001", t_us=now_us(), step=50, steps_per_s=4.5,
            metrics={"loss": math.nan, "phase": "warm-up"},
            usage={"cpu_percent": 150.0, "memory_bytes": 7, "gpus": [gpu, {"index": 4, "busy_percent": None}]},
            checkpointing={"sentence": "", "interval_s": 60.0, "blocked_s": 0.25, "durable_s": None},
        )
    )  # fmt: skip
    found = read(of(store))
    assert found["orch_jobs", "RUNNING"] == 1
    assert 99 < found["orch_job_state_seconds", "a-1", "RUNNING"] < 1000
    assert 29 < found["orch_job_checkpoint_age_seconds", "a-1"] < 1000
    assert (found["orch_job_step", "a-1"], found["orch_job_steps_per_second", "a-1"]) == (50, 4.5)
    assert math.isnan(found["orch_job_value", "a-1", "loss"])
    assert ("orch_job_value", "a-1", "phase") not in found
    assert found["orch_job_checkpoint_interval_seconds", "a-1"] == 60
    assert found["orch_job_checkpoint_blocked_seconds", "a-1"] == 0.25
    assert ("orch_job_checkpoint_durable_seconds", "a-1") not in found
    assert (found["orch_job_cpu_ratio", "a-1"], found["orch_job_memory_bytes", "a-1"]) == (1.5, 7)
    assert found["orch_job_gpu_busy_ratio", "3", "a-1"] == 0.87
    assert found["orch_job_gpu_memory_used_bytes", "3", "a-1"] == 5
    assert ("orch_job_gpu_busy_ratio", "4", "a-1") not in found
    assert found["orch_job_unprotected", "a-1"] == 1
    assert found["orch_job_goodput_ratio", "a-1"] == 1
    assert 99 < found["orch_job_time_seconds", "productive", "a-1"] < 1000


def test_before_the_first_checkpoint_its_age_is_that_of_the_training(store: Store) -> None:
    insert(store, started_us=now_us() - 50 * SECOND)
    insert(store, "b-1", State.QUEUED)
    found = read(of(store))
    assert 49 < found["orch_job_checkpoint_age_seconds", "a-1"] < 1000
    assert ("orch_job_checkpoint_age_seconds", "b-1") not in found
    assert 99 < found["orch_job_state_seconds", "b-1", "QUEUED"] < 1000


def test_jobs_that_ended_are_only_counted(store: Store) -> None:
    insert(store, state=State.FAILED, ended_us=now_us())
    found = read(of(store))
    assert found["orch_jobs", "FAILED"] == 1
    assert not [name for name in found if "a-1" in name]


def test_recoveries_by_cause(store: Store) -> None:
    insert(store)
    metrics = of(store)
    tell(store, {"type": "Recovered", "step": 1})  # the first start
    tell(store, KILLED, {"type": "Recovered", "recovery_s": 1.5, "lost_steps": 2})
    tell(store, {"type": "AgentLost", "rank": 0}, {"type": "AgentLost", "rank": 1}, KILLED)
    found = read(metrics)
    assert found["orch_interruptions_total", "killed"] == 2
    assert found["orch_interruptions_total", "agent_died"] == 1, "of a gang, two agents at once"
    assert found["orch_recoveries_total", "killed"] == 1
    assert found["orch_recovery_seconds_total", "killed"] == 1.5
    assert found["orch_lost_steps_total",] == 2
    tell(store, {"type": "Recovered", "recovery_s": None, "down_s": 4.0})
    assert read(metrics)["orch_recovery_seconds_total", "killed"] == 5.5
    assert read(metrics)["orch_recoveries_total", "killed"] == 2, "nothing is counted twice"
    assert counters(of(store)) == counters(metrics), "the next controller counts on from the same numbers"


@pytest.mark.parametrize(
    ("documents", "cause"),
    [
        ([{"type": "AgentLost", "node_lost": True}], "node_died"),
        ([{"type": "PreemptionNoticed"}, {"type": "AgentLost", "node_lost": True}], "preempted"),
        ([{"type": "AgentLost", "preempted": True}], "preempted"),
        ([{"type": "GangLost"}], "node_died"),
        ([{"type": "PreemptionNoticed"}, {"type": "WorkerEnded", "outcome": "left"}], "preempted"),
        ([{"type": "RestartDecided", "failure": {"kind": "hang"}}], "hang"),
        ([{"type": "RestartDecided", "failure": {"kind": "exit", "of": "a newer version"}}], "exit"),
        ([{"type": "RestartDecided", "failure": {"cause": "oom_kill", "of": "a newer one"}}], "oom_kill"),
        ([{"type": "RestartDecided", "failure": None}], "exit"),
        ([{"type": "WorkerEnded", "outcome": "succeeded"}], None),
        ([{"type": "AgentLost"}, {"type": "Closed"}], None),
    ],
)
def test_why_it_was_interrupted(store: Store, documents: list[dict[str, Any]], cause: str | None) -> None:
    insert(store)
    tell(store, *documents, {"type": "Recovered"})
    recovered = {
        name[1]: number for name, number in read(of(store)).items() if name[0] == "orch_recoveries_total"
    }
    assert recovered == ({} if cause is None else {cause: 1})


def test_checkpoints(store: Store) -> None:
    insert(store)
    saved = {"type": "CheckpointCommitted", "size_bytes": 10, "seconds_s": 0.5, "blocked_s": 0.125}
    tell(store, *[saved] * (EVENTS_MAX + 1), {"type": "CheckpointCommitted"})
    found = read(of(store))
    assert found["orch_checkpoints_total",] == EVENTS_MAX + 2
    assert found["orch_checkpoint_bytes_total",] == 10 * (EVENTS_MAX + 1)
    assert found["orch_checkpoint_durable_seconds_total",] == 0.5 * (EVENTS_MAX + 1)
    assert found["orch_checkpoint_blocked_seconds_total",] == 0.125 * (EVENTS_MAX + 1)


def test_every_name_is_told_with_its_labels(store: Store) -> None:
    text = of(store).text().decode()
    for name in (*COUNTERS, *GAUGES):
        assert f"# TYPE {name} " in text
    assert len(COUNTERS.keys() & GAUGES.keys()) == 0


@pytest.mark.skipif(shutil.which("promtool") is None, reason="Prometheus' own checker is not installed here")
def test_prometheus_finds_nothing_to_complain_about(store: Store) -> None:
    test_a_job_at_work(store)
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=of(store).text(), capture_output=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr.decode() + done.stdout.decode()
