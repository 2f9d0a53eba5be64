"""A controller that places nothing: real store, real files, and it does what a test says."""

import io
import random
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from orch.control.home import Home
from orch.control.jobrecord import StoredJob
from orch.control.lifecycle import advance
from orch.control.logfiles import read_logs
from orch.control.metrics import Metrics
from orch.control.recovering import put_back, set_secrets
from orch.control.rows import NewJob
from orch.control.secrets import SecretBox
from orch.control.service import (
    Bell,
    Document,
    Download,
    JobQuery,
    LogChunk,
    LogQuery,
    PlacementCheck,
    Resumption,
    Submission,
)
from orch.control.store import Store, now_us
from orch.control.views import job_detail, job_events, job_list
from orch.model.errors import NeverPlaceable, WrongUse
from orch.model.events import Event
from orch.model.ids import make_job_id
from orch.model.spec import JobSpec
from orch.model.states import ENDED, JobState, State

CPUS_LARGEST = 4


class FakeControlService:
    def __init__(self, home: Home) -> None:
        self.home = home.ensure()
        self.store = Store.open(home, {})
        self.secrets = SecretBox.of(home)
        self._bell = Bell()
        self._rng = random.Random(7)
        self.outputs_of: dict[str, Mapping[str, bytes]] = {}
        self.preempted: list[tuple[str, float]] = []
        self.resumed: list[tuple[str, Resumption]] = []
        self.stopped = False
        self.broken_after: int | None = None
        self.closed_downloads = 0

    @property
    def bell(self) -> Bell:
        return self._bell

    @property
    def upload_folder(self) -> Path:
        return self.home.uploads

    def submit(self, submission: Submission) -> Document:
        check = self.check(submission.spec)
        if not check.placeable:
            raise NeverPlaceable(check.reason)
        job = make_job_id(submission.spec.job_name, self._rng)
        state = JobState(job=job, state=State.QUEUED, reason="waits for its turn", submitted_us=now_us())
        code = submission.code
        new = NewJob(
            name=submission.spec.job_name,
            spec=submission.spec.model_dump(mode="json"),
            priority=submission.spec.priority,
            code={"digest": code.digest, "size_bytes": code.size_bytes} if code else None,
            request=submission.request,
            sealed_secrets=self.secrets.seal(job, submission.secrets),
        )
        with self.store.transaction() as transaction:
            present = transaction.job_of_request(submission.request) if submission.request else None
            if present is None:
                transaction.insert_job(new, state)
                transaction.append_event(job, {"type": "Submitted", "workers": 1}, t_us=now_us())
        return self.job(present or job)

    def has_code(self, digest: str) -> bool:
        return (self.home.uploads / f"{digest}.zip").exists()

    def upload_code(self, digest: str, file: Path, size_bytes: int) -> None:
        assert file.stat().st_size == size_bytes
        file.replace(self.home.uploads / f"{digest}.zip")

    def check(self, spec: JobSpec) -> PlacementCheck:
        asked = spec.resources.cpus
        fits = asked <= CPUS_LARGEST
        reason = f"asked for {asked:g} CPUs per worker; the largest machine has {CPUS_LARGEST}"
        return PlacementCheck(
            placeable=fits,
            reason=reason,
            asked={"cpus": asked},
            largest={"cpus": CPUS_LARGEST},
            storage="home",
        )

    def jobs(self, query: JobQuery) -> list[Document]:
        return job_list(
            self.store, now_us=now_us(), states=query.states, limit=query.limit, before=query.before
        )

    def job(self, job: str) -> Document:
        return job_detail(self.store, job, now_us=now_us())

    def ended(self, job: str) -> bool:
        return self.store.state(job) in ENDED

    def events(self, job: str, after: int, limit: int) -> list[Document]:
        return job_events(self.store, job, after=after, limit=limit)

    def logs(self, job: str, query: LogQuery) -> LogChunk:
        state = self.store.lifecycle(job)
        return read_logs(self.home, job, query, newest_attempt=state.attempt, ended=state.state in ENDED)

    def cancel(self, job: str, *, now: bool) -> Document:
        self.end(job, State.CANCELLED, "cancelled now" if now else "cancelled")
        return self.job(job)

    def preempt(self, job: str, *, grace_s: float, attempt: int | None) -> Document:
        if self.store.state(job) != State.RUNNING:
            raise WrongUse(f"{job} has no place that it could leave")
        self.preempted.append((job, grace_s))
        return self.job(job)

    def resume(self, job: str, asked: Resumption) -> Document:
        self.resumed.append((job, asked))
        return self.job(job)

    def recover(self, stored: StoredJob, spec: JobSpec, url: str) -> tuple[str, Document]:
        outcome = put_back(self.store, stored, spec, url)
        return outcome, self.job(stored.job)

    def set_secrets(self, job: str, values: Mapping[str, str]) -> Document:
        def apply(job: str, event: Event) -> None:
            with self.store.transaction() as transaction:
                state, _ = advance(transaction.lifecycle(job), event, now_us())
                transaction.save(state)

        set_secrets(self.store, self.secrets, job, values, apply)
        return self.job(job)

    def outputs(self, job: str) -> Download:
        self.store.state(job)
        if job not in self.outputs_of:
            raise WrongUse(f"job {job} names no outputs")
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for name, data in self.outputs_of[job].items():
                archive.writestr(name, data)
        return Download(name=f"{job}.zip", chunks=self._chunks(buffer.getvalue()))

    def _chunks(self, data: bytes) -> Iterator[bytes]:
        try:
            for start in range(0, len(data), 1000):
                if self.broken_after is not None and start >= self.broken_after:
                    raise OSError("the disk is gone")
                yield data[start : start + 1000]
        finally:
            self.closed_downloads += 1

    def server_status(self) -> Document:
        return {"pid": 1, "jobs": self.store.count_by_state(), "store": self.store.description}

    def metrics(self) -> bytes:
        return Metrics(self.store, list, "1").text()

    def hand_over(self) -> None:
        self.stopped = True

    def stop(self) -> Document:
        self.stopped = True
        return self.server_status()

    # What a test does to a job

    def tell(self, job: str, document: Mapping[str, Any], **words: Any) -> None:
        with self.store.transaction() as transaction:
            transaction.append_event(job, document, t_us=now_us(), **words)
        self.bell.ring(job)

    def end(self, job: str, state: State, reason: str = "") -> None:
        with self.store.transaction() as transaction:
            before = transaction.lifecycle(job)
            transaction.save(
                JobState(
                    job=job,
                    state=state,
                    reason=reason,
                    attempt=before.attempt,
                    submitted_us=before.submitted_us,
                    ended_us=now_us(),
                )
            )
            transaction.append_event(job, {"type": "Closed"}, t_us=now_us(), decision=state.value)
        self.bell.ring(job)

    def write_log(self, job: str, data: bytes, *, attempt: int = 1) -> None:
        path = self.home.log_path(job, attempt, 0)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.write(data)
