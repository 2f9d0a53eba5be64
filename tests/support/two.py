"""Controllers without Ray, each in a process of its own, on one home."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import psutil

from orch.control.home import Home
from orch.control.store import Store
from orch.model.states import State
from support.lone_controller import JOB
from support.server import wait_for

TESTS = Path(__file__).parent.parent


class Two:
    """A home, and controllers on it (`support.lone_controller`)."""

    def __init__(self, root: Path, env: Mapping[str, str] | None = None) -> None:
        """`env`: ORCH_STORE, where it is no file of the home."""
        self.home = Home(root / "home").ensure()
        self.cluster = self.home.root / "cluster"
        self.cluster.mkdir()
        self._env = dict(env or {})
        self.store = Store.open(self.home, self._env)
        self.started: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.started:
            process.kill()
            process.communicate()
        self.store.close()

    def controller(self, **env: str) -> subprocess.Popen[str]:
        with (self.home.root / f"controller-{len(self.started)}.log").open("w") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "support.lone_controller", str(self.home.root)],
                cwd=TESTS, env={**os.environ, **self._env, **env}, text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
            )  # fmt: skip
        self.started.append(process)
        return process

    def frozen(self, process: subprocess.Popen[str]) -> None:
        wait_for(
            "the controller is frozen",
            lambda: psutil.Process(process.pid).status() == psutil.STATUS_STOPPED,
            poll_s=0.005,
        )

    def state(self) -> State | None:
        found = [row for row in self.store.jobs() if row.id == JOB]
        return State(found[0].state) if found else None

    def until(self, state: State) -> None:
        wait_for(f"the job is {state}", lambda: self.state() is state)

    def acts(self, pid: int) -> list[list[Any]]:
        lines = (self.cluster / "acts").read_text().splitlines()
        return [act[1:] for act in map(json.loads, lines) if act[0] == pid]

    def told(self) -> list[tuple[str, str]]:
        return [(row.type, json.dumps(row.data, sort_keys=True)) for row in self.store.events(JOB)]


def say(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(f"{line}\n")
    process.stdin.flush()
