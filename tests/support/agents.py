"""Agents without Ray: real processes with a real Keeper that save as fast as they can, so that a test can stop and
wake them. `python -m support.agents` is the process that all of them are forked from: starting one takes
milliseconds.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from orch.model.generation import Generation
from orch_workers import config as worker_config
from orch_workers.config import WorkerConfig
from orch_workers.keeper import Keeper
from support import snapshots
from support.processes import wait_dead
from support.server import wait_for

if TYPE_CHECKING:
    from collections.abc import Mapping

LIMIT_S = 60.0
ROOM_BYTES = 1 << 15
SLOT_WAIT_S = 0.001


def state_of(attempt: int, step: int) -> snapshots.State:
    """Differs between agents at the same step: whose bytes they are can be seen."""
    return snapshots.state(step * 100 + attempt, 50)


@dataclass(frozen=True)
class Place:
    """A storage for agents."""

    url: str
    options: Mapping[str, Any]
    env: Mapping[str, str]


class Agents:
    """The process they are forked from. They end with it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "support.agents"],
            cwd=Path(__file__).parents[1],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(LIMIT_S)
        self._process.stdout.close()

    def start(self, place: Place, job: str, attempt: int, *, saves: int, keep: int) -> Agent:
        """On a machine of its own."""
        folder = self._folder / f"{job}-{attempt}"
        folder.mkdir()
        config = {
            "job_id": job,
            "attempt": attempt,
            "run": "true",
            "node_root": str(folder / "node"),
            "logs_root": str(folder / "logs"),
            "storage_url": place.url,
            "storage_options": dict(place.options),
            "env": dict(place.env),
            "workdir": str(folder),
            "keep": {"last": keep},
        }
        order = {"config": config, "folder": str(folder), "saves": saves}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return Agent(int(self._process.stdout.readline()), folder / "told")


class Agent:
    """One of them, and what it has told."""

    def __init__(self, pid: int, log: Path) -> None:
        self.pid, self._log = pid, log

    def stop(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGSTOP)

    def wake(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def told(self, kind: str) -> list[Any]:
        """What it told of this kind, oldest first."""
        lines = self._log.read_text().splitlines() if self._log.exists() else []
        entries = [json.loads(line) for line in lines if line.endswith("}")]
        return [entry[kind] for entry in entries if kind in entry]

    def wait_told(self, kind: str, count: int = 1) -> Any:
        wait_for(f"{count} {kind} of {self._log}", lambda: len(self.told(kind)) >= count, LIMIT_S)
        return self.told(kind)[count - 1]

    def wait_ended(self) -> None:
        try:
            wait_dead(self.pid)
        except AssertionError as error:
            stacks = self._log.with_name("stacks")
            os.kill(self.pid, signal.SIGUSR1)
            wait_for("its stacks", stacks.read_text, LIMIT_S)
            raise AssertionError(f"{error}; it told:\n{self._log.read_text()}{stacks.read_text()}") from error


def _be_agent(order: Mapping[str, Any]) -> None:
    folder = Path(order["folder"])
    worker_config.SHARED_MEMORY = folder / "shm"
    config = WorkerConfig(**order["config"])
    config.paths.make()
    faulthandler.register(signal.SIGUSR1, (folder / "stacks").open("w"))
    log = (folder / "told").open("a", buffering=1)
    superseded = threading.Event()

    def say(**what: Any) -> None:
        log.write(json.dumps(what) + "\n")

    def told_superseded(why: str) -> None:
        say(superseded=why)
        superseded.set()

    keeper = Keeper(
        config,
        {},
        tell=lambda step, generation, *_: say(committed=[str(generation), step]),
        note=lambda text: say(note=text),
        superseded=told_superseded,
        stopping=threading.Event(),
    )
    keeper.open()
    keeper.start_generation(Generation(config.attempt, 1))
    found = keeper.prepared()
    keeper.restored(loaded=found is not None)
    step = 0 if found is None else found.step
    say(began=step)
    for _ in range(order["saves"]):
        given = None
        while given is None and not superseded.wait(0 if given else SLOT_WAIT_S):
            given = keeper.acquire(ROOM_BYTES)
        if given is None:
            break
        step += 1
        snapshots.fill(given.path, state_of(config.attempt, step), generation=(config.attempt, 1), step=step)
        keeper.saved(given.index, {"reason": "asked"})
    keeper.drain(LIMIT_S)
    say(ended=step)


def main() -> None:
    # Once here, and not a second in every agent.
    import botocore.session  # noqa: F401

    import orch_workers.checkpoint.s3  # noqa: F401

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    mother = os.getpid()
    for line in sys.stdin:
        pid = os.fork()
        if pid:
            print(pid, flush=True)
            continue
        try:
            _end_with(mother)
            _be_agent(json.loads(line))
        except BaseException as error:
            with Path(json.loads(line)["folder"], "told").open("a") as log:
                log.write(json.dumps({"fault": repr(error)}) + "\n")
            raise
        finally:
            os._exit(0)


def _end_with(mother: int) -> None:
    import ctypes

    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != mother:
        os._exit(1)


if __name__ == "__main__":
    main()
