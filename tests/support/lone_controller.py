"""A real controller in a process of its own, on a cluster that is a folder: `python -m support.lone_controller HOME`.

Two of them share one home, and so one store and one cluster, which is what Ray never lets happen for long. Whatever a
controller does to the cluster is a line of `acts`, with its pid. Commands come by stdin, a line each.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from ray.exceptions import ActorDiedError

from orch.control.cluster import Cluster, Fate
from orch.control.controller import Controller
from orch.control.home import Home
from orch.control.rows import NewJob
from orch.control.store import Store
from orch.model.errors import NoServer
from orch.model.events import (
    CancelRequested,
    CheckpointCommitted,
    Event,
    ProcessStarted,
    Recovered,
    Submitted,
    WorkerEnded,
    event_to_dict,
)
from orch.model.generation import Generation
from orch.model.spec import JobSpec

JOB = "lone-x1"
BACKOFF_S = 2.0
DIE = "die"
"""A file in the cluster's folder: the next agent that has told everything dies."""
FREEZE = "freeze-at-the-next-look"
"""A file in the cluster's folder: whoever looks for agents in order to carry out a command is frozen there."""


class Folder(Cluster):
    """Gangs and agents are empty files; the agents of a job tell what an undisturbed one would."""

    def __init__(self, root: Path) -> None:
        self._root = root
        for folder in (root / "gangs", root / "agents"):
            folder.mkdir(parents=True, exist_ok=True)

    def _act(self, *what: object) -> None:
        with (self._root / "acts").open("a") as file:
            file.write(json.dumps([os.getpid(), *what]) + "\n")

    def nodes(self) -> list[Any]:
        return []

    def fate(self, node_id: str) -> Fate:
        return Fate()

    def request_gang(
        self,
        job_id: str,
        attempt: int,
        bundle: object,
        workers: int,
        avoid: object = (),
        placement: object = None,
    ) -> None:
        self._act("request_gang", attempt)
        (self._root / "gangs" / f"{job_id}.{attempt}").touch()

    def gang_exists(self, job_id: str, attempt: int) -> bool:
        return (self._root / "gangs" / f"{job_id}.{attempt}").exists()

    gang_granted = gang_exists

    def gangs(self) -> list[tuple[str, int]]:
        found = [path.name.rpartition(".") for path in (self._root / "gangs").iterdir()]
        return [(job, int(attempt)) for job, _, attempt in found]

    def remove_gang(self, job_id: str, attempt: int) -> None:
        self._act("remove_gang", attempt)
        (self._root / "gangs" / f"{job_id}.{attempt}").unlink(missing_ok=True)

    def start_agent(self, config: Any, *, gang_attempt: int, bundle: object) -> Any:
        job, attempt, rank = config["job_id"], config["attempt"], config["rank"]
        self._act("start_agent", attempt, rank)
        (self._root / "agents" / f"{job}.{attempt}.{rank}").touch()
        return self.find_agent(job, attempt, rank)

    def agents(self) -> list[tuple[str, int, int]]:
        if threading.current_thread().name.startswith("command"):
            with contextlib.suppress(FileNotFoundError):
                (self._root / FREEZE).unlink()
                (self._root / "frozen").write_text(str(os.getpid()))
                signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)
        found = [path.name.split(".") for path in (self._root / "agents").iterdir()]
        return [(job, int(attempt), int(rank)) for job, attempt, rank in found]

    def find_agent(self, job_id: str, attempt: int, rank: int) -> Any | None:
        path = self._root / "agents" / f"{job_id}.{attempt}.{rank}"
        return _Agent(self, path, attempt, rank) if path.exists() else None

    def kill_agent(self, job_id: str, attempt: int, rank: int) -> None:
        self._act("kill_agent", attempt, rank)
        (self._root / "agents" / f"{job_id}.{attempt}.{rank}").unlink(missing_ok=True)

    def call(self, handle: Any, method: str, *args: Any, limit_s: float = 0) -> Any:
        return getattr(handle, method).remote(*args)

    def watch(self, handle: Any, cursor: int, on_answer: Callable[[Any, BaseException | None], None]) -> None:
        """One entry an answer, so that each is a transaction of its own; after the last one, its death or silence."""
        left = [entry for entry in handle.entries() if entry["seq"] > cursor]
        if left:
            on_answer({"entries": left[:1], "progress": None}, None)
        else:
            threading.Thread(target=self._until_it_dies, args=(handle, on_answer), daemon=True).start()

    def _until_it_dies(self, handle: _Agent, on_answer: Callable[[Any, BaseException | None], None]) -> None:
        while not (self._root / DIE).exists():
            threading.Event().wait(0.01)
        (self._root / DIE).unlink()
        handle.path.unlink()
        on_answer(None, ActorDiedError())


class _Agent:
    def __init__(self, folder: Folder, path: Path, attempt: int, rank: int) -> None:
        self._folder, self.path, self._attempt, self._rank = folder, path, attempt, rank

    @property
    def describe(self) -> _Call:
        return _Call(lambda: {"node": "here", "node_id": "n1", "pid": 1, "backlog": []})

    @property
    def stop(self) -> _Call:
        return _Call(lambda *_: self._folder._act("stop", self._attempt, self._rank))

    @property
    def sweep(self) -> _Call:
        return _Call(lambda: self._folder._act("sweep", self._attempt, self._rank))

    def entries(self) -> list[dict[str, Any]]:
        generation = Generation(self._attempt, 1)
        told: list[Event] = [
            ProcessStarted(generation=generation, rank=self._rank, pid=2),
            Recovered(generation=generation, step=1),
            CheckpointCommitted(generation=generation, step=1),
        ]
        if not (self._folder._root / "endless").exists():
            told.append(WorkerEnded(attempt=self._attempt, rank=self._rank, outcome="succeeded", exit_code=0))
        return [
            {
                "attempt": self._attempt,
                "rank": self._rank,
                "seq": seq,
                "t_us": 1,
                "event": event_to_dict(event),
            }
            for seq, event in enumerate(told, 1)
        ]


class _Call:
    """`handle.method.remote(…)`, answered at once."""

    def __init__(self, act: Callable[..., Any]) -> None:
        self._act = act

    def remote(self, *arguments: Any) -> _Call:
        self._answer = self._act(*arguments)
        return self

    def future(self) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(self._answer)
        return done


def _freeze_between_transactions(store: Store) -> None:
    """One that is frozen within a transaction holds SQLite's lock, and keeps every other controller from starting."""
    send = signal.pthread_kill

    def pthread_kill(thread: int, number: int) -> None:
        with store._writing:
            send(thread, number)

    signal.pthread_kill = pthread_kill


def main() -> int:
    home = Home(Path(sys.argv[1])).ensure()
    store = Store.open(home)
    _freeze_between_transactions(store)
    taken = threading.Event()
    controller = Controller(store, Folder(home.root / "cluster"), home, on_taken=taken.set)
    controller.start()
    print("holds the store", flush=True)
    threading.Thread(target=_obey, args=(controller, home), daemon=True).start()
    taken.wait()
    try:
        controller.ask(lambda: controller.apply(JOB, CancelRequested(now=True)))
    except NoServer as error:
        print(f"taken: {error}", flush=True)
    return 0


def _obey(controller: Controller, home: Home) -> None:
    spec = JobSpec.model_validate({"run": "true", "checkpoint": {"storage": str(home.storage)}})
    row = NewJob(name="lone", spec=spec.model_dump(mode="json"), sealed_secrets={})
    for line in sys.stdin:
        with contextlib.suppress(NoServer):
            if line == "submit\n":
                budgets = {"backoff_initial_s": BACKOFF_S, "backoff_max_s": BACKOFF_S}
                event = Submitted(job=JOB, budgets=budgets)
                controller.ask(
                    lambda event=event: controller.submit(event, lambda tx, state: tx.insert_job(row, state))
                )
            elif line == "cancel\n":
                controller.ask(lambda: controller.apply(JOB, CancelRequested(now=True)))


if __name__ == "__main__":
    sys.exit(main())
