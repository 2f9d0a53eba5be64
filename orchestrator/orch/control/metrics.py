"""What a monitoring system asks for: the store's numbers in Prometheus' text format. docs/operations.md has the table.

Names and units follow Prometheus (`_seconds`, `_total`), not the rest of orch. Everything comes from the store, so a
controller that was restarted goes on counting where the one before it stood.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from orch.control.store import EVENTS_MAX, Store, now_us
from orch.control.views import ledger
from orch.model.states import ENDED, JobState, State
from orch_policies import goodput
from orch_policies.classification import CAUSES, Failure, classify

if TYPE_CHECKING:
    from orch.control.cluster import Node
    from orch.control.rows import CheckpointRow, EventRow, JobRow, ProgressRow

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
JOBS_SHOWN_MAX = 1000
"""Only jobs that have not ended have numbers of their own, the newest of them at most so many."""
NUMBERS_SHOWN_MAX = 20
"""Of the numbers that a script reports by itself (its loss), per job."""
UNFINISHED = tuple(state.value for state in State if state not in ENDED)


class Family(NamedTuple):
    help: str
    labels: tuple[str, ...] = ()
    """A job is `job_id`: `job` is what Prometheus itself calls the server that it asked."""


COUNTERS: Mapping[str, Family] = {
    "orch_interruptions_total": Family("Times that training was interrupted, by cause.", ("cause",)),
    "orch_recoveries_total": Family("Interruptions after which a new step was done, by cause.", ("cause",)),
    "orch_recovery_seconds_total": Family(
        "Time from interruptions to the first new step, by cause.", ("cause",)
    ),
    "orch_lost_steps_total": Family("Steps that were done twice."),
    "orch_checkpoints_total": Family("Checkpoints that were committed."),
    "orch_checkpoint_bytes_total": Family("Bytes of committed checkpoints."),
    "orch_checkpoint_blocked_seconds_total": Family("Time that training waited for snapshots."),
    "orch_checkpoint_durable_seconds_total": Family("Time from snapshots to their commits in storage."),
}
GAUGES: Mapping[str, Family] = {
    "orch_info": Family("The server's version.", ("version",)),
    "orch_store_writable": Family("1 while the server can write its store, else 0."),
    "orch_nodes": Family("Machines of the cluster that are alive."),
    "orch_cluster_cpus": Family("CPU cores of the cluster."),
    "orch_cluster_gpus": Family("GPUs of the cluster."),
    "orch_jobs": Family("Jobs by state.", ("state",)),
    "orch_job_state_seconds": Family(
        "How long a job has been in its present state; of a QUEUED one its queue time.", ("job_id", "state")
    ),
    "orch_job_time_seconds": Family(
        "Where a job's time went, as `orch goodput` tells it.", ("job_id", "bucket")
    ),
    "orch_job_goodput_ratio": Family("Productive time over all time that was not queued.", ("job_id",)),
    "orch_job_unprotected": Family("1 for a job whose state nothing keeps.", ("job_id",)),
    "orch_job_step": Family("The newest step.", ("job_id",)),
    "orch_job_steps_per_second": Family("Steps per second, as last reported.", ("job_id",)),
    "orch_job_value": Family("What the script reports by itself, its loss for one.", ("job_id", "name")),
    "orch_job_checkpoint_age_seconds": Family(
        "Age of the newest checkpoint; before the first one, time since training began.", ("job_id",)
    ),
    "orch_job_checkpoint_interval_seconds": Family("How often the job is saved by the clock.", ("job_id",)),
    "orch_job_checkpoint_blocked_seconds": Family("How long training waits for one snapshot.", ("job_id",)),
    "orch_job_checkpoint_durable_seconds": Family(
        "How long a snapshot takes to be safe in storage.", ("job_id",)
    ),
    "orch_job_cpu_ratio": Family("CPU cores that rank 0 keeps busy.", ("job_id",)),
    "orch_job_memory_bytes": Family("Memory of rank 0's processes.", ("job_id",)),
    "orch_job_gpu_busy_ratio": Family("How busy a GPU of rank 0 is, from 0 to 1.", ("job_id", "gpu")),
    "orch_job_gpu_memory_used_bytes": Family("Memory in use on a GPU of rank 0.", ("job_id", "gpu")),
    "orch_job_gpu_memory_total_bytes": Family("Memory of a GPU of rank 0.", ("job_id", "gpu")),
}

OF_A_CHECKPOINT = {
    "orch_checkpoint_bytes_total": "size_bytes",
    "orch_checkpoint_blocked_seconds_total": "blocked_s",
    "orch_checkpoint_durable_seconds_total": "seconds_s",
}
"""Counter → what CheckpointCommitted calls it."""

Sample = tuple[str, tuple[str, ...], float]
"""Name of the family, values of its labels, number."""


class Metrics:
    """One for the life of a controller. `text` may be called from many threads."""

    def __init__(self, store: Store, nodes: Callable[[], Sequence[Node]], version: str) -> None:
        self._store, self._nodes, self._version = store, nodes, version
        self._tally = Tally()
        self._lock = threading.Lock()
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def text(self) -> bytes:
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """For prometheus_client."""
        families: dict[str, CounterMetricFamily | GaugeMetricFamily] = {}
        for kind, found in ((CounterMetricFamily, COUNTERS), (GaugeMetricFamily, GAUGES)):
            families |= {
                name: kind(name, family.help, labels=family.labels) for name, family in found.items()
            }
        for name, labels, number in self._samples(now_us()):
            families[name].add_metric(labels, number)
        yield from families.values()

    def _samples(self, at_us: int) -> Iterator[Sample]:
        with self._lock:
            self._tally.read(self._store)
            yield from self._tally.samples()
        yield "orch_info", (self._version,), 1
        yield "orch_store_writable", (), 0 if self._store.trouble else 1
        nodes = self._nodes()
        yield "orch_nodes", (), len(nodes)
        yield "orch_cluster_cpus", (), sum(node.cpus for node in nodes)
        yield "orch_cluster_gpus", (), sum(node.gpus for node in nodes)
        jobs = self._store.count_by_state()
        for state in State:
            yield "orch_jobs", (state.value,), jobs.get(state.value, 0)
        rows = self._store.jobs(states=UNFINISHED, limit=JOBS_SHOWN_MAX)
        ids = [row.id for row in rows]
        states = {state.job: state for state in self._store.unfinished()}
        progress, checkpoints = self._store.progress(ids), self._store.last_checkpoints(ids)
        for row in rows:
            yield from _of_job(row, states.get(row.id), checkpoints.get(row.id), at_us)
            told = progress.get(row.id)
            if told is not None:
                yield from _of_progress(told)


def _of_job(
    row: JobRow, state: JobState | None, checkpoint: CheckpointRow | None, at_us: int
) -> Iterator[Sample]:
    job = (row.id,)
    if state is not None:
        yield "orch_job_state_seconds", (row.id, state.state.value), _since_s(state.since_us, at_us)
    spent_us = ledger(row, at_us)
    for bucket, us in spent_us.items():
        yield "orch_job_time_seconds", (row.id, bucket), us / 1e6
    share = goodput.goodput(spent_us)
    if share is not None:
        yield "orch_job_goodput_ratio", job, share
    yield "orch_job_unprotected", job, float(row.unprotected)
    saved_us = row.started_us if checkpoint is None else checkpoint.committed_us
    if saved_us is not None:
        yield "orch_job_checkpoint_age_seconds", job, _since_s(saved_us, at_us)


def _of_progress(told: ProgressRow) -> Iterator[Sample]:
    job, usage, saves = (told.job,), told.usage, told.checkpointing or {}
    cpu = _number(usage.get("cpu_percent"))
    yield from _known(job, "orch_job_step", told.step)
    yield from _known(job, "orch_job_steps_per_second", told.steps_per_s)
    for name in sorted(told.metrics)[:NUMBERS_SHOWN_MAX]:
        yield from _known((told.job, name), "orch_job_value", told.metrics[name])
    for name in ("interval", "blocked", "durable"):
        yield from _known(job, f"orch_job_checkpoint_{name}_seconds", saves.get(f"{name}_s"))
    yield from _known(job, "orch_job_cpu_ratio", None if cpu is None else cpu / 100)
    yield from _known(job, "orch_job_memory_bytes", usage.get("memory_bytes"))
    for gpu in usage.get("gpus") or ():
        labels = (told.job, str(gpu.get("index")))
        busy = _number(gpu.get("busy_percent"))
        yield from _known(labels, "orch_job_gpu_busy_ratio", None if busy is None else busy / 100)
        for name in ("used", "total"):
            yield from _known(labels, f"orch_job_gpu_memory_{name}_bytes", gpu.get(f"memory_{name}_bytes"))


class Tally:
    """Counts what the events tell, each event once: the event table only grows, in the order of its numbers."""

    TYPES = (
        "RestartDecided",
        "AgentLost",
        "GangLost",
        "WorkerEnded",
        "PreemptionNoticed",
        "Recovered",
        "CheckpointCommitted",
        "Closed",
    )

    def __init__(self) -> None:
        self._after = 0
        self._counts: defaultdict[tuple[str, tuple[str, ...]], float] = defaultdict(float)
        self._causes: dict[str, str] = {}
        """Job → why it was interrupted, until it has recovered or is over."""
        self._noticed: set[str] = set()

    def read(self, store: Store) -> None:
        while True:
            rows = store.events_of(self.TYPES, after=self._after)
            for row in rows:
                self._take(row)
                self._after = row.seq
            if len(rows) < EVENTS_MAX:
                return

    def samples(self) -> Iterator[Sample]:
        for name, family in COUNTERS.items():
            if not family.labels:  # an alert on a counter that is not there yet would miss its first step
                yield name, (), self._counts[name, ()]
        for (name, labels), number in self._counts.items():
            if labels:
                yield name, labels, number

    def _take(self, row: EventRow) -> None:
        data = row.data
        match row.type:
            case "RestartDecided":
                self._interrupted(row.job, _cause_of(data.get("failure")), again=True)
            case "AgentLost":
                gone = "node_died" if data.get("node_lost") else "agent_died"
                announced = data.get("preempted") or row.job in self._noticed
                self._interrupted(row.job, "preempted" if announced else gone)
            case "GangLost":
                self._interrupted(row.job, "node_died")
            case "WorkerEnded" if data.get("outcome") == "left":
                self._interrupted(row.job, "preempted")
            case "PreemptionNoticed":
                self._noticed.add(row.job)
            case "Recovered":
                self._recovered(row.job, data)
            case "CheckpointCommitted":
                self._counts["orch_checkpoints_total", ()] += 1
                for name, key in OF_A_CHECKPOINT.items():
                    self._add(name, (), data.get(key))
            case "Closed":
                self._forget(row.job)
            case _:
                pass

    def _interrupted(self, job: str, cause: str, *, again: bool = False) -> None:
        """Several agents of a gang are lost in one interruption; a restart that was decided (`again`) is always one."""
        if again or job not in self._causes:
            self._causes[job] = cause
            self._counts["orch_interruptions_total", (cause,)] += 1

    def _recovered(self, job: str, data: Mapping[str, Any]) -> None:
        cause = self._causes.get(job)
        self._forget(job)
        if cause is None:
            return  # the first start
        self._counts["orch_recoveries_total", (cause,)] += 1
        down_s = data.get("recovery_s") if data.get("recovery_s") is not None else data.get("down_s")
        self._add("orch_recovery_seconds_total", (cause,), down_s)
        self._add("orch_lost_steps_total", (), data.get("lost_steps"))

    def _forget(self, job: str) -> None:
        self._causes.pop(job, None)
        self._noticed.discard(job)

    def _add(self, name: str, labels: tuple[str, ...], value: Any) -> None:
        self._counts[name, labels] += _number(value) or 0.0


def _cause_of(failure: Any) -> str:
    """A name of CAUSES, so that there are never more of them than that table has."""
    try:
        return classify(Failure.from_dict(dict(failure)))
    except (TypeError, ValueError, KeyError):  # written by another version
        named = failure.get("cause") if isinstance(failure, Mapping) else None
        return str(named) if named in CAUSES else "exit"


def _known(labels: tuple[str, ...], name: str, value: Any) -> Iterator[Sample]:
    number = _number(value)
    if number is not None:
        yield name, labels, number


def _number(value: Any) -> float | None:
    """Also NaN and infinity, which Prometheus takes; nothing else than a number."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _since_s(then_us: int, at_us: int) -> float:
    return max(0, at_us - then_us) / 1e6
