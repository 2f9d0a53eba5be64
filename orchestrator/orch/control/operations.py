"""What the API asks of the controller: `orch.control.service.ControlService`, made real."""

from __future__ import annotations

import contextlib
import os
import random
import threading
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

from orch.control import resuming, views
from orch.control.configs import budgets_of, storage_of
from orch.control.controller import Controller
from orch.control.cordons import request_of, room_on
from orch.control.jobrecord import StoredJob, job_record
from orch.control.jobstorage import open_job_storage, open_spec_storage
from orch.control.lifecycle_common import attempt_to_ask_for
from orch.control.logfiles import read_logs
from orch.control.metrics import Metrics
from orch.control.protection import imports_orch
from orch.control.recovering import put_back, set_secrets
from orch.control.rows import JobDetailRow, NewJob
from orch.control.secrets import SecretBox
from orch.control.service import (
    Bell,
    CodeInfo,
    Document,
    Download,
    JobQuery,
    LogChunk,
    LogQuery,
    PlacementCheck,
    Resumption,
    Submission,
)
from orch.control.store import StoreAwayError, Transaction, now_us
from orch.model.config import Config
from orch.model.errors import NeverPlaceable, NoSuchJob, WrongUse
from orch.model.events import CancelRequested, PreemptRequested, Submitted
from orch.model.ids import make_job_id
from orch.model.spec import JobSpec, StorageSpec, unsupported
from orch.model.states import ENDED, PLACED, State
from orch_policies.placement import Node, fits, largest
from orch_workers.checkpoint import Catalog
from orch_workers.checkpoint.errors import AlreadyExists, StorageError
from orch_workers.checkpoint.storage import Storage
from orch_workers.logs.redaction import Redactor

IDS_TRIES_MAX = 20
STOP_SAVE_LIMIT_S = 30.0
COPY_BYTES = 1 << 20


class Operations:
    """Called from the API's threads; what changes a job goes through the controller's one thread."""

    def __init__(
        self,
        controller: Controller,
        config: Config,
        version: str,
        ray_address: str,
        on_stop: Callable[[], None],
    ) -> None:
        self._controller, self._store, self._home = controller, controller.store, controller.home
        default = config.storage
        self._default_storage = (
            StorageSpec(url=str(self._home.storage))
            if default is None
            else StorageSpec(url=default.url, options=dict(default.options))
        )
        self._to_come = [
            Node(f"a machine to come ({number})", kind.cpus, kind.gpus, kind.memory_bytes)
            for kind in config.machines
            for number in range(1, kind.count + 1)
        ]
        self._version, self._ray_address, self._on_stop = version, ray_address, on_stop
        self._box = SecretBox.of(self._home)
        self._started_us = now_us()
        self._random = random.SystemRandom()
        self._submitting = threading.Lock()
        self._metrics = Metrics(self._store, controller.cluster.nodes, version)

    @property
    def bell(self) -> Bell:
        return self._controller.bell

    @property
    def upload_folder(self) -> Path:
        return self._home.uploads

    # submitting

    def submit(self, submission: Submission) -> Document:
        with self._submitting:  # a repeated request must find the first one's job
            known = self._store.job_of_request(submission.request) if submission.request else None
            job = known or self._submit_new(submission)
        return self.job(job)

    def _submit_new(self, submission: Submission) -> str:
        spec = self._resolved(submission)
        self._refuse_impossible(spec)
        missing = [name for name in spec.secrets if name not in submission.secrets]
        if missing:
            raise WrongUse(
                f"no value was given for the secret {missing[0]}; set it in the environment of `orch submit`"
            )
        code = submission.code if spec.ship == "auto" else None
        source = Path(spec.workdir)
        if code is not None:
            source = self._uploaded(code.digest)
        has_code = code is not None or spec.ship == "never"
        protected = bool(spec.checkpoint.files) or (has_code and imports_orch(source, spec.run))
        storage = self._storage(spec, {**spec.env, **submission.secrets})
        name = spec.job_name
        # A submit that is repeated, because the controller died over it, finds its own record in storage.
        chance = random.Random(submission.request) if submission.request else self._random
        seed = chance.randrange(2**31)
        job = self._put_into_storage(storage, name, chance, spec, code, seed=seed, unprotected=not protected)
        event = Submitted(
            job=job,
            workers=spec.resources.workers,
            seed=seed,
            budgets=budgets_of(spec),
            unprotected=not protected,
        )
        row = NewJob(
            name=name,
            spec=spec.model_dump(mode="json"),
            priority=spec.priority,
            code=asdict(code) if code else None,
            request=submission.request,
            sealed_secrets=self._box.seal(job, {name: submission.secrets[name] for name in spec.secrets}),
        )
        self._controller.ask(
            lambda: self._controller.submit(event, lambda tx, state: tx.insert_job(row, state))
        )
        return job

    def _resolved(self, submission: Submission) -> JobSpec:
        """With everything that this server decides: where checkpoints go, and where a job is that runs in place."""
        spec = self._with_storage(submission.spec)
        if spec.ship == "auto":
            return spec
        folder = (Path(submission.base_dir or ".") / spec.workdir).resolve()
        if not folder.is_dir():
            raise WrongUse(
                f"workdir: {folder} is no folder on the server's machine; `ship: never` runs in place"
            )
        return spec.model_copy(update={"workdir": str(folder)})

    def _with_storage(self, spec: JobSpec) -> JobSpec:
        if spec.checkpoint.storage is not None:
            return spec
        checkpoint = spec.checkpoint.model_copy(update={"storage": self._default_storage})
        return spec.model_copy(update={"checkpoint": checkpoint})

    def _refuse_impossible(self, spec: JobSpec) -> None:
        problems = unsupported(spec)
        if problems:
            raise WrongUse("\n".join(str(problem) for problem in problems))
        placement = self._placement(spec)
        if not placement.placeable:
            raise NeverPlaceable(f"this job can never be placed here: {placement.reason}")

    def _storage(self, spec: JobSpec, env: Mapping[str, str]) -> Storage:
        try:
            storage = open_spec_storage(spec, env)
            storage.check_writable()
        except StorageError as error:
            raise WrongUse(f"checkpoint.storage: {error}") from error
        return storage

    def _uploaded(self, digest: str) -> Path:
        path = self._home.uploads / f"{digest}.zip"
        if not path.is_file():
            raise WrongUse(f"the code {digest} was not uploaded; submit again")
        return path

    def _put_into_storage(
        self,
        storage: Storage,
        name: str,
        chance: random.Random,
        spec: JobSpec,
        code: CodeInfo | None,
        *,
        seed: int,
        unprotected: bool,
    ) -> str:
        """The job can be read back from storage alone: its spec and its code. Returns its id."""
        told = asdict(code) if code else None
        try:
            for _ in range(IDS_TRIES_MAX):
                job = self._new_id(name, chance)
                record = job_record(
                    job, spec.model_dump(mode="json"), told, seed=seed, unprotected=unprotected
                )
                with contextlib.suppress(AlreadyExists):  # a job of another server that shares the storage
                    storage.create(f"{job}/job.json", record)
                    break
            else:
                raise WrongUse(f"no free id was found for the name {name!r}; choose another name")
            if code is not None:
                storage.create(f"{job}/code/{code.digest}.zip", self._uploaded(code.digest).read_bytes())
        except StorageError as error:
            raise WrongUse(f"checkpoint.storage: {error}") from error
        return job

    def _new_id(self, name: str, chance: random.Random) -> str:
        for _ in range(IDS_TRIES_MAX):
            job = make_job_id(name, chance)
            try:
                self._store.state(job)
            except NoSuchJob:
                return job
        raise WrongUse(f"no free id was found for the name {name!r}; choose another name")

    def has_code(self, digest: str) -> bool:
        return (self._home.uploads / f"{digest}.zip").is_file()

    def upload_code(self, digest: str, file: Path, size_bytes: int) -> None:
        file.replace(self._home.uploads / f"{digest}.zip")

    def check(self, spec: JobSpec) -> PlacementCheck:
        problems = unsupported(spec)
        if problems:
            raise WrongUse("\n".join(str(problem) for problem in problems))
        spec = self._with_storage(spec)
        if (
            not spec.secrets
        ):  # with secrets, credentials may be among them, and only `submit` has their values
            self._storage(spec, dict(spec.env))
        return self._placement(spec)

    def _placement(self, spec: JobSpec) -> PlacementCheck:
        request = request_of(spec.model_dump(mode="json"))
        nodes = [room_on(node) for node in self._controller.cluster.nodes()] + self._to_come
        fit = fits(request, nodes)
        url, _ = storage_of(spec)
        return PlacementCheck(
            placeable=fit.fits,
            reason=fit.reason,
            asked=asdict(request),
            largest={
                "cpus": max((n.cpus for n in nodes), default=0),
                "gpus": max((n.gpus for n in nodes), default=0),
                "memory_bytes": max((n.memory_bytes for n in nodes), default=0),
                "sentence": largest(nodes),
            },
            storage=url,
        )

    # looking

    def jobs(self, query: JobQuery) -> list[Document]:
        found = views.job_list(
            self._store, now_us=now_us(), states=query.states, limit=query.limit, before=query.before
        )
        return [self._with_turn(job) for job in found]

    def job(self, job: str) -> Document:
        return self._with_turn(views.job_detail(self._store, job, now_us=now_us()))

    def _with_turn(self, job: Document) -> Document:
        """Of a job that waits: also who is before it. That changes with every other job, so it is not stored."""
        turn = self._controller.turns.get(job["id"]) if job["state"] == State.QUEUED else None
        return job | {"reason": f"{job['reason']}; {turn}"} if turn else job

    def ended(self, job: str) -> bool:
        return self._store.state(job) in ENDED

    def over(self, jobs: Iterable[str]) -> list[str]:
        """For agents alone. A job that is not known here may be another server's, and is not over."""
        found = []
        for job in jobs:
            with contextlib.suppress(NoSuchJob):
                if self.ended(job):
                    found.append(job)
        return found

    def events(self, job: str, after: int, limit: int) -> list[Document]:
        return views.job_events(self._store, job, after=after, limit=limit)

    def logs(self, job: str, query: LogQuery) -> LogChunk:
        # Before the files: what they hold then is at least what there was at the end.
        detail = self._store.job(job)
        workers = JobSpec.model_validate(detail.spec).resources.workers
        if query.rank >= workers:
            raise WrongUse(f"job {job} has no rank {query.rank}; its last is {workers - 1}")
        ended = State(detail.state) in ENDED
        redactor = Redactor(self.secrets(job).values())
        return read_logs(
            self._home, job, query, newest_attempt=detail.attempt, ended=ended, redactor=redactor
        )

    def outputs(self, job: str) -> Download:
        detail = self._store.job(job)
        spec = JobSpec.model_validate(detail.spec)
        storage = open_job_storage(self._store, self._home, job)
        try:
            entries = storage.list(f"{job}/outputs")
        except StorageError as error:
            raise WrongUse(f"the outputs of {job} cannot be read: {error}") from error
        newest = max((entry.path.split("/")[2] for entry in entries), default=None)
        if newest is None:
            named = (
                f"nothing matched {', '.join(spec.outputs)}"
                if spec.outputs
                else "its job file names no `outputs`"
            )
            raise WrongUse(f"{job} has no outputs (yet): {named}")
        prefix = f"{job}/outputs/{newest}/"
        archive = self._home.uploads / f"outputs-{job}-{os.getpid()}-{threading.get_ident()}.zip"
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as target:
            for entry in entries:
                if entry.path.startswith(prefix):
                    target.writestr(entry.path.removeprefix(prefix), storage.read(entry.path))
        return Download(name=f"{job}-outputs.zip", chunks=_chunks(archive), size_bytes=archive.stat().st_size)

    def secrets(self, job: str) -> dict[str, str]:
        """For agents alone; not part of the API."""
        return self._box.unseal(job, self._store.sealed_secrets(job))

    # acting

    def cancel(self, job: str, *, now: bool) -> Document:
        self._store.lifecycle(job)
        self._controller.ask(lambda: self._controller.apply(job, CancelRequested(now=now)))
        return self.job(job)

    def preempt(self, job: str, *, grace_s: float, attempt: int | None) -> Document:
        def act() -> None:
            present = self._store.lifecycle(job)
            if attempt is not None and present.attempt > attempt:
                return  # it has left
            if present.state not in PLACED:
                raise WrongUse(f"{job} is {present.state}: it has no place that it could leave")
            self._controller.apply(job, PreemptRequested(grace_s=grace_s))

        self._controller.ask(act)
        return self.job(job)

    def resume(self, job: str, asked: Resumption) -> Document:
        with self._submitting:  # a repeated request must find what the first one has done
            detail, state = self._store.job(job), self._store.lifecycle(job)
            if asked.resumes is None or state.resumes <= asked.resumes:
                self._resume(detail, asked)
        return self.job(job)

    def _resume(self, detail: JobDetailRow, asked: Resumption) -> None:
        """What it needs into storage first, then the decision, with all that changes, into the store."""
        job, controller = detail.id, self._controller
        before = JobSpec.model_validate(detail.spec)
        after, changed = resuming.spec_of(before, asked)
        resuming.refuse_unless_possible(job, self._store.lifecycle(job), asked)
        given = resuming.lost_secrets(job, after, self._store.sealed_secrets(job), asked.secrets)
        self._refuse_impossible(after)
        storage = self._storage(after, {**after.env, **self.secrets(job), **given})
        code = None
        if asked.code is not None and before.ship == "auto":
            code = resuming.next_code(detail.code, asked.code, attempt_to_ask_for(self._store.lifecycle(job)))
        if code is not None:
            data = self._uploaded(code["digest"]).read_bytes()
            try:
                with contextlib.suppress(AlreadyExists):  # it was this one before
                    storage.create(f"{job}/code/{code['digest']}.zip", data)
            except StorageError as error:
                raise WrongUse(f"checkpoint.storage: {error}") from error
        event = resuming.event_of(before, after, changed, asked, code, Catalog(storage, job))
        sealed = self._box.seal(job, given)

        def also(transaction: Transaction) -> None:
            transaction.set_spec(job, after.model_dump(mode="json"), after.priority)
            if code is not None:
                transaction.set_code(job, code)
            for name, value in sealed.items():
                transaction.put_secret(job, name, value)

        def act() -> None:
            resuming.refuse_unless_possible(job, self._store.lifecycle(job), asked)
            controller.apply(job, event, also=also)

        controller.ask(act)

    def recover(self, stored: StoredJob, spec: JobSpec, url: str) -> tuple[str, Document]:
        controller = self._controller
        outcome = controller.ask(lambda: put_back(self._store, stored, spec, url, controller.points.here))
        return outcome, self.job(stored.job)

    def set_secrets(self, job: str, values: Mapping[str, str]) -> Document:
        controller = self._controller
        controller.ask(lambda: set_secrets(self._store, self._box, job, values, controller.apply))
        return self.job(job)

    def server_status(self) -> Document:
        jobs, trouble = {}, ""
        try:
            jobs = self._store.count_by_state()
        except StoreAwayError as error:  # the server is there all the same, and says what it lacks
            trouble = error.message
        return {
            "version": self._version,
            "pid": os.getpid(),
            "started": views.format_time(self._started_us),
            "ray_address": self._ray_address,
            "store": self._store.description,
            "store_trouble": self._store.trouble or trouble or None,
            "nodes": [asdict(node) for node in self._controller.cluster.nodes()],
            "jobs": jobs,
        }

    def metrics(self) -> bytes:
        return self._metrics.text()

    def hand_over(self) -> None:
        self._on_stop()

    def stop(self) -> Document:
        saved = self._controller.save_all(STOP_SAVE_LIMIT_S)
        self._on_stop()
        return {"saved": saved}


def _chunks(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            while block := file.read(COPY_BYTES):
                yield block
    finally:
        path.unlink(missing_ok=True)
