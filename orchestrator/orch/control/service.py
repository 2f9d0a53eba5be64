"""What the HTTP API needs from the controller: one protocol, and the values that cross it.

Methods are called from many threads at once and answer quickly; whatever takes long is waited for through the
`Bell`. They raise the errors of `orch.model.errors`, whose message goes to the person who asked; any other
exception is a bug of ours, is logged, and is not shown.
"""

import asyncio
import contextlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from orch.control.jobrecord import StoredJob
from orch.model.events import GRACE_S_DEFAULT
from orch.model.spec import JobSpec

Document = dict[str, Any]
"""A JSON document of docs/api.md; `orch.control.views` makes them."""

LOG_CHUNK_BYTES = 1 << 20
"""Most bytes of a log in one answer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CodeInfo:
    """What was shipped: a zip that was uploaded before under its digest."""

    digest: str
    """SHA-256 of the zip, 64 hexadecimal digits."""
    size_bytes: int = 0
    git_commit: str | None = None
    git_dirty: bool | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Submission:
    spec: JobSpec
    """Its name is the one to use: `--name` has been put in."""
    base_dir: str | None = None
    """Absolute folder on the submitter's machine that `workdir` is relative to."""
    code: CodeInfo | None = None
    """None: `ship: never`, or nothing to ship."""
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Values by name; they are sealed before they are stored and shown nowhere."""
    request: str | None = None
    """The submitter's own number for this submit: a repetition answers with the job that is there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Resumption:
    """What `orch resume` asks for."""

    spec: JobSpec | None = None
    """The job's, with what is to change; None: as it is."""
    at: int | None = None
    """The step to go on from; None: the newest restore point."""
    at_generation: tuple[int, int] | None = None
    """Whose checkpoint of that step, where there are several."""
    code: CodeInfo | None = None
    """None: the code that it has."""
    workdir: str | None = None
    """Of a job that runs in place (`ship: never`): another folder; of one that is shipped: where its code came from."""
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    """New values of some of its secrets."""
    resumes: int | None = None
    """Only if it was resumed so often before: a repeated request must not hit what the first one began."""
    grace_s: float = GRACE_S_DEFAULT
    """For a job that has a place: how long it may take to save and leave."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JobQuery:
    states: Sequence[str] = ()
    """Empty: all."""
    limit: int = 200
    before: tuple[int, str] | None = None
    """(submitted_us, id) of the last job already seen; the answer goes on behind it, newest first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LogQuery:
    rank: int = 0
    attempt: int | None = None
    """None: the first attempt that has a log; the newest where `tail_lines` is given."""
    offset: int = 0
    limit_bytes: int = LOG_CHUNK_BYTES
    tail_lines: int | None = None
    """Begin so many lines before the end instead of at `offset`."""
    times: bool = False
    """Also say when what was seen."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LogChunk:
    data: bytes
    attempt: int
    """Whose log this is; 0 while no attempt has one."""
    offset: int
    """Where `data` begins; the next chunk begins behind it."""
    ended: bool
    """Nothing will be added to this attempt's log, and `data` reaches its end."""
    next_attempt: int | None = None
    """The attempt whose log follows this one; None: there is none yet, or, with `ended`, at all."""
    times: Sequence[tuple[int, int]] = ()
    """(byte offset, microseconds UTC) in rising order: what stands from there on was seen then."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Download:
    """A file on its way out; `chunks` is read once, by one thread, and closed if the reader goes away."""

    name: str
    chunks: Iterator[bytes]
    size_bytes: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class PlacementCheck:
    """Whether a job could run here at all, whatever runs at the moment."""

    placeable: bool
    reason: str
    """A sentence with the numbers."""
    asked: Mapping[str, Any] = field(default_factory=dict)
    largest: Mapping[str, Any] = field(default_factory=dict)
    """The most that one machine of the cluster has."""
    storage: str = ""
    """Where checkpoints would go."""
    warnings: Sequence[str] = ()


class Bell:
    """Rung when something about a job was written down; whoever waits for news of that job wakes up.

    `ring` may be called from any thread, `listen` inside any event loop. A ring that nobody listens to is
    forgotten: listen first, then look, then wait.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiters: dict[str, set[_Waiter]] = {}
        self.closed = False

    def ring(self, job: str) -> None:
        with self._lock:
            waiters = self._waiters.pop(job, set())
        for waiter in waiters:
            waiter.wake()

    def close(self) -> None:
        """For a server that stops: nobody is kept waiting any more."""
        with self._lock:
            self.closed = True
            jobs = list(self._waiters)
        for job in jobs:
            self.ring(job)

    def listen(self, job: str) -> "_Waiter":
        """From now on a ring is kept until `wait` is called. Inside a running event loop."""
        waiter = _Waiter()
        with self._lock:
            if self.closed:
                waiter.wake()
            self._waiters.setdefault(job, set()).add(waiter)
        return waiter

    def leave(self, job: str, waiter: "_Waiter") -> None:
        with self._lock:
            present = self._waiters.get(job, set())
            present.discard(waiter)
            if not present:
                self._waiters.pop(job, None)


class _Waiter:
    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._rung = asyncio.Event()

    def wake(self) -> None:
        # A loop that was closed meanwhile has no one left to wake.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._rung.set)

    async def wait(self, limit_s: float) -> bool:
        """Whether it rang within the limit."""
        try:
            await asyncio.wait_for(self._rung.wait(), limit_s)
        except TimeoutError:
            return False
        return True


@runtime_checkable
class ControlService(Protocol):
    """The controller, as the API sees it. Documents are those of docs/api.md."""

    @property
    def bell(self) -> Bell:
        """Rung for a job whenever an event of it was written down, or its state changed."""
        ...

    @property
    def upload_folder(self) -> Path:
        """Where the API may put an upload while it arrives; on one file system with where it ends."""
        ...

    def submit(self, submission: Submission) -> Document:
        """Stores the job and answers with its detail document. WrongUse, NeverPlaceable."""
        ...

    def has_code(self, digest: str) -> bool:
        """Whether the upload can be left out."""
        ...

    def upload_code(self, digest: str, file: Path, size_bytes: int) -> None:
        """Takes `file` over, whose digest was checked. May be repeated."""
        ...

    def check(self, spec: JobSpec) -> PlacementCheck:
        """What `submit` would say, without submitting. WrongUse for what it would refuse."""
        ...

    def jobs(self, query: JobQuery) -> list[Document]:
        """Summaries, newest first."""
        ...

    def job(self, job: str) -> Document:
        """The detail document. NoSuchJob."""
        ...

    def ended(self, job: str) -> bool:
        """Whether the job is over and all its events are written down. NoSuchJob."""
        ...

    def events(self, job: str, after: int, limit: int) -> list[Document]:
        """Events with a number above `after`, oldest first. NoSuchJob."""
        ...

    def logs(self, job: str, query: LogQuery) -> LogChunk:
        """NoSuchJob; WrongUse for an attempt or rank the job never had."""
        ...

    def cancel(self, job: str, *, now: bool) -> Document:
        """Asks for the job's end; `now`: without the grace period. Harmless when it has ended. NoSuchJob."""
        ...

    def preempt(self, job: str, *, grace_s: float, attempt: int | None) -> Document:
        """Has a job save, leave its place within `grace_s` and be placed again. NoSuchJob; WrongUse if it has none.

        `attempt`: only if it is still at this one (None: at any).
        """
        ...

    def resume(self, job: str, asked: Resumption) -> Document:
        """Has a job go on, ended or blocked ones too: a new attempt, with what is to change. NoSuchJob; WrongUse."""
        ...

    def recover(self, stored: StoredJob, spec: JobSpec, url: str) -> tuple[str, Document]:
        """A job that was read back from the storage at `url` goes on; with `spec`, which is its own with that storage.

        Returns "resumed", "blocked" (its secrets are to be set), "ended" or "known" (nothing was changed), and the
        detail document.
        """
        ...

    def set_secrets(self, job: str, values: Mapping[str, str]) -> Document:
        """New values for all secrets of a job, which goes on if it was BLOCKED. NoSuchJob; WrongUse for other names."""
        ...

    def outputs(self, job: str) -> Download:
        """What `outputs` named, as a zip. NoSuchJob; WrongUse if there is none (yet)."""
        ...

    def server_status(self) -> Document:
        """`{"version", "pid", "started", "ray_address", "store", "store_trouble", "nodes": […], "jobs": {…}}`."""
        ...

    def metrics(self) -> bytes:
        """Prometheus' text format (`orch.control.metrics`)."""
        ...

    def hand_over(self) -> None:
        """Ends the control plane alone, so that another can take its place; agents go on and are adopted."""
        ...

    def stop(self) -> Document:
        """Has the agents save what they hold and ends the control plane; jobs go on at the next start."""
        ...
