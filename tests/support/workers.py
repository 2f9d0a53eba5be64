"""A machine of its own for keepers and workers without Ray: real slots, sockets and processes, and a local storage
that fails when a test says so.
"""

from __future__ import annotations

import shutil
import textwrap
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orch.model.generation import Generation
from orch_policies.restart import Budgets
from orch_workers import config as worker_config
from orch_workers import ending, keeper, patience
from orch_workers.checkpoint.errors import StorageUnavailable
from orch_workers.checkpoint.local import LocalStorage
from orch_workers.checkpoint.objects import TEMPORARY_PREFIX
from orch_workers.config import WorkerConfig, WorkerPaths
from orch_workers.keeper import Keeper
from orch_workers.reports import Reports
from orch_workers.worker import Worker
from support import snapshots
from support.server import wait_for

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

    from orch_workers.prepared import Prepared

LIMIT_S = 30.0
ROOM_BYTES = 1 << 16
JOB = "digits-1a2b"

# Speaks the protocol with nothing but the standard library, so that a start takes milliseconds.
TRAINEE = textwrap.dedent(
    """
    import json, os, socket, sys
    from orch_workers.training.page import Page
    from orch_workers.training.slots import Slot, parse_generation

    def wait(name):
        os.mkfifo(name)
        open(name).read()

    class Trainee:
        def __init__(self, restore=True, load=lambda trainee: None):
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.connect(os.environ["ORCH_SOCKET"])
            self.lines = self.socket.makefile("rw")
            welcome = self.ask("hello", protocol=1, pid=os.getpid(), python="3", frameworks={}, restore=restore)
            if welcome["type"] == "refused":
                sys.exit(welcome["message"])
            self.generation = parse_generation(welcome["generation"])
            self.page = Page(welcome["page"])
            point = welcome["restore"] if restore else None
            self.step = Slot(point["path"]).read()[1]["step"] if point else 0
            self.page.put_progress(self.step, 0)
            load(self)
            source = point["source"] if point else "none"
            self.tell("restored", step=self.step, source=source, seconds_s=0.0)

        def tell(self, kind, **fields):
            self.lines.write(json.dumps({"type": kind, **fields}) + "\\n")
            self.lines.flush()

        def ask(self, kind, **fields):
            self.tell(kind, **fields)
            return json.loads(self.lines.readline())

        def steps(self, count):
            for _ in range(count):
                self.step += 1
                self.page.put_progress(self.step, 0)

        def save(self, reason="asked", say=True):
            given = self.ask("save", size_bytes=65536, step=self.step, reason=reason, wait=True)
            if given["type"] == "busy":
                return False
            slot = Slot(given["path"], writable=True)
            slot.begin(self.generation, self.step)
            data = slot.data()
            data[:8] = self.step.to_bytes(8, "little")
            entry = {"name": "count", "dtype": "I64", "shape": [], "offset": 0, "size_bytes": 8}
            meta = {"tree": {}, "entries": [entry], "step": self.step, "epoch": 0, "kind": "state", "frameworks": {}}
            slot.finish(self.generation, self.step, 8, meta)
            if say:
                self.tell("saved", index=given["index"], step=self.step, epoch=0, reason=reason, blocked_s=0.0)
            return True

        def finished(self):
            assert self.ask("finished", step=self.step, epoch=0) == {"type": "ok"}
    """
)


LISTENS = """
    job = Trainee()
    job.steps(3)
    wait("up")
    while not job.page.read_word().stop:
        pass
    job.steps(1)
    job.save("stop")
    sys.exit(75)
"""
"""Leaves at the next step when it is told to."""
DEAF = """
    import signal
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    job = Trainee()
    job.steps(2)
    job.save()
    wait("up")
    while True:
        signal.pause()
"""
"""Never leaves."""


AT_ONCE = {"budgets": Budgets(backoff_initial_s=0.0).to_dict()}
"""A policy that restarts without a pause."""


class MoodyStorage(LocalStorage):
    """A local storage; `mood(what, path)` is asked before every call and may raise or block."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.mood: Callable[[str, str], None] = good

    def create(self, path: str, data: Any) -> bool:
        self.mood("create", path)
        return super().create(path, data)

    def read(self, path: str, start: int | None = None, end: int | None = None) -> bytes:
        self.mood("read", path)
        return super().read(path, start, end)

    def list(self, prefix: str = "") -> list[Any]:
        self.mood("list", prefix)
        return super().list(prefix)


def good(what: str, path: str) -> None:
    """Nothing is the matter."""


class Failing:
    """A mood: calls whose path has `part` in it fail, `times` of them, or all. `seen` counts them."""

    def __init__(
        self, part: str = "", *, times: int | None = None, error: type[Exception] | None = None
    ) -> None:
        self._part, self._left, self.seen = part, times, 0
        self._error = error or StorageUnavailable

    def __call__(self, what: str, path: str) -> None:
        if self._part not in path or self._left == 0:
            return
        self._left = None if self._left is None else self._left - 1
        self.seen += 1
        raise self._error(f"{what} {path}: a test says no")


class Stuck:
    """A mood: creating something below `part` neither fails nor returns, until `go`."""

    def __init__(self, part: str) -> None:
        self._part, self.reached, self.go = part, threading.Event(), threading.Event()

    def __call__(self, what: str, path: str) -> None:
        if what == "create" and self._part in path:
            self.reached.set()
            assert self.go.wait(LIMIT_S)


class Machine:
    """Where keepers and workers of one job live. `folder` is short, for the socket's sake."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self._patch = folder, monkeypatch
        self.storage = MoodyStorage(folder / "storage")
        self.workdir = folder / "work"
        self.workdir.mkdir()
        (self.workdir / "trainee.py").write_text(TRAINEE)
        self._stoppable: list[Callable[[], None]] = []
        self.moves_to("here")
        monkeypatch.setattr(worker_config, "SOCKETS", folder / "s")
        monkeypatch.setattr(keeper, "open_storage", lambda *_, **__: self.storage)
        monkeypatch.setattr(patience, "RETRY_MIN_S", 0.01)
        monkeypatch.setattr(patience, "RETRY_MAX_S", 0.02)
        monkeypatch.setattr(ending, "OUTPUTS_RETRY_S", 0.01)

    def moves_to(self, machine: str) -> None:
        """What starts now, starts on another machine; storage is the same."""
        self._machine = machine
        self._patch.setattr(worker_config, "SHARED_MEMORY", self.folder / machine / "shm")

    def config(self, attempt: int = 1, **more: Any) -> WorkerConfig:
        given: dict[str, Any] = {
            "job_id": JOB,
            "attempt": attempt,
            "run": "true",
            "node_root": str(self.folder / self._machine / "node"),
            "logs_root": str(self.folder / "logs"),
            "storage_url": "unused",
            "workdir": str(self.workdir),
            **more,
        }
        return WorkerConfig(**given)

    def keeper(self, attempt: int = 1, **more: Any) -> Kept:
        kept = Kept(self.config(attempt, **more))
        self._stoppable.append(kept.stop)
        return kept

    def worker(self, attempt: int = 1, *, script: str | None = None, **more: Any) -> Running:
        """Started. `script` is what the command runs, with a Trainee at hand."""
        if script is not None:
            text = "from trainee import *\n" + textwrap.dedent(script)
            (self.workdir / f"train-{attempt}.py").write_text(text)
            more["run"] = f"python train-{attempt}.py"
        running = Running(self.config(attempt, **more))
        self._stoppable.append(running.stop)
        return running

    def go(self, name: str) -> None:
        """The training process waits for `name` (`wait`) and goes on."""
        path = self.workdir / name
        self.waits(name)
        path.write_text("go")
        path.unlink()

    def waits(self, name: str) -> None:
        """Until the training process waits for `name`."""
        wait_for(f"the training process waits for {name}", (self.workdir / name).exists, LIMIT_S)

    def files(self, part: str) -> list[str]:
        """Objects of the job below `part`, in storage; not what is still being written under another name."""
        top = self.storage.root / JOB / part
        found = (path for path in top.rglob("*") if path.is_file())
        return sorted(
            str(path.relative_to(top)) for path in found if not path.name.startswith(TEMPORARY_PREFIX)
        )

    def committed(self) -> list[tuple[str, int]]:
        names = [name.removesuffix(".json").split("/") for name in self.files("manifests")]
        return [(generation, int(step)) for generation, step in names]

    def close(self) -> None:
        """Everything has ended when it returns, and nothing is left."""
        self.storage.mood = good
        for stop in self._stoppable:
            stop()
        wait_for("nobody writes any more", self._remove, LIMIT_S)

    def _remove(self) -> bool:
        shutil.rmtree(self.folder, ignore_errors=True)
        return not self.folder.exists()


class Kept:
    """A keeper, what it told, and a training process played by the test."""

    def __init__(self, config: WorkerConfig) -> None:
        self.committed: list[tuple[str, int]] = []
        self.notes: list[str] = []
        self.superseded: list[str] = []
        self.stopping = threading.Event()
        self.config = config
        self.generation = Generation(config.attempt, 0)
        config.paths.make()
        self.keeper = Keeper(
            config,
            {},
            tell=lambda step, generation, *_: self.committed.append((str(generation), step)),
            note=self.notes.append,
            superseded=self.superseded.append,
            stopping=self.stopping,
        )

    def open(self) -> Kept:
        self.keeper.open()
        return self

    def stop(self) -> None:
        self.stopping.set()
        self.keeper.close()
        if self.keeper._writer.is_alive():
            self.keeper._writer.join(LIMIT_S)

    def prepare(self) -> Prepared | None:
        """The next start of the process, and what it is offered."""
        self.generation = Generation(self.config.attempt, self.generation.restart + 1)
        self.keeper.start_generation(self.generation)
        return self.keeper.prepared()

    def begin(self) -> Prepared | None:
        """The next start, which takes what it is offered."""
        found = self.prepare()
        self.keeper.restored(loaded=found is not None)
        return found

    def save(self, step: int, *, torn: bool = False, say: bool = True) -> int:
        given = wait_for("a free slot", lambda: self.keeper.acquire(ROOM_BYTES), LIMIT_S)
        generation = (self.generation.attempt, self.generation.restart)
        state = snapshots.state(step, 10)
        snapshots.fill(given.path, state, generation=generation, step=step, torn=torn)
        if say:
            self.keeper.saved(given.index, {"reason": "asked", "epoch": 0})
        return given.index

    def keep(self, *steps: int) -> None:
        """Saves each and waits until it is a checkpoint."""
        for step in steps:
            self.save(step)
            assert self.keeper.drain(LIMIT_S)


class Running:
    """A worker at work, and what it has told."""

    def __init__(self, config: WorkerConfig) -> None:
        self.config = config
        self.paths.make()
        self.reports = Reports(self.paths.state, config.attempt, config.rank)
        self.gave_up = threading.Event()
        self.worker = self._make()
        self._notes: list[str] = []
        self._progress: dict[str, Any] = {}
        self.worker.start()

    @property
    def paths(self) -> WorkerPaths:
        return self.config.paths

    def _make(self) -> Worker:
        return Worker(self.config, self.reports, dict, give_up=self.gave_up.set)

    def stop(self) -> None:
        """As when the agent is killed, and its guard has ended what ran."""
        self.worker.halt()
        self.worker._close()
        keeper = self.worker._keeper
        if keeper is not None:
            keeper.join(LIMIT_S)

    def told(self, kind: str) -> list[dict[str, Any]]:
        """Events of one type, oldest first."""
        entries = self._look()
        return [entry["event"] for entry in entries if entry["event"]["type"] == kind]

    def wait_told(self, kind: str, count: int = 1) -> dict[str, Any]:
        wait_for(f"{count} {kind}", lambda: len(self.told(kind)) >= count, LIMIT_S)
        return self.told(kind)[count - 1]

    def end(self) -> dict[str, Any]:
        return self.wait_told("WorkerEnded")

    def look_at_page(self) -> None:
        """Returns when the loop has looked at the progress page once more."""
        looked = threading.Event()
        self.worker._inbox.put(self.worker._tick)
        self.worker._inbox.put(looked.set)
        assert looked.wait(LIMIT_S)

    def notes(self) -> str:
        """All that a person would see."""
        self._look()
        return "\n".join(self._notes)

    def _look(self) -> list[dict[str, Any]]:
        """Asks as the controller does."""
        answer = self.reports.wait(0, 0)
        if answer["progress"] is not None:
            self._notes = answer["progress"]["notes"]
            self._progress = answer["progress"]
        entries: list[dict[str, Any]] = answer["entries"]
        return entries

    def metrics(self) -> dict[str, Any]:
        """The newest that were told."""
        self._look()
        return dict(self._progress.get("metrics") or {})

    def aware(self) -> bool:
        """Whether something keeps the job's state, as it tells itself."""
        self._look()
        return bool(self._progress["aware"])

    def wait_note(self, part: str) -> None:
        wait_for(f"a note with {part!r}", lambda: part in self.notes(), LIMIT_S)
