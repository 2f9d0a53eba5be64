"""SIGKILL of the training process to its first new step: torchrun, Ray Train and orch under one script body.

The total is what a user waits. The overhead is the total without what the script itself does after its imports
(set-up, loading the state, the first step), which every side stamps for itself: it is what the side costs.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from tests.benchmarks.processes import running, scratch
from tests.benchmarks.report import Report
from tests.support.server import Server, wait_for

from orch.control.raylocal import free_port

SIDES_FOLDER = Path(__file__).parent / "sides"
WIDTH = 5120
SAVES_BEFORE_KILL = 2
AFTER_SAVE_S = 0.3
"""A kill comes so long after a save: within it every side must be able to use that save."""
START_LIMIT_S = 120.0
RECOVERY_LIMIT_S = 120.0

Stamp = dict[str, Any]
Side = Callable[[Path, Mapping[str, str]], contextlib.AbstractContextManager[None]]


def measure(kills: int, sides: list[str], console: Console) -> Report:
    report = Report("recovery", by="overhead_s", ours="orch", facts={"width": WIDTH, "kills": kills})
    for name in sides:
        with scratch(name) as folder:
            events = folder / "events"
            events.touch()
            env = {**_environment(), "EVENTS": str(events), "WIDTH": str(WIDTH)}
            with SIDES[name](folder, env):
                for number in range(1, kills + 1):
                    found = _kill_once(events)
                    report.add(name, **found)
                    console.print(f"{name} {number}/{kills}: {found['total_s']:.2f} s to the first new step")
    return report


def _environment() -> dict[str, str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith(("ORCH_", "RAY_"))}
    return {**env, "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled", "PYTHONUNBUFFERED": "1"}


def _stamps(events: Path) -> list[Stamp]:
    # The last line may still be being written.
    return [json.loads(line) for line in events.read_text().splitlines(keepends=True) if line.endswith("\n")]


def _kill_once(events: Path) -> dict[str, float]:
    seen = len(_stamps(events))

    def saved() -> Stamp | None:
        saves = [stamp for stamp in _stamps(events)[seen:] if stamp["event"] == "saved"]
        return saves[SAVES_BEFORE_KILL - 1] if len(saves) >= SAVES_BEFORE_KILL else None

    save = wait_for("the training saves", saved, START_LIMIT_S)
    time.sleep(max(0.0, save["t"] + AFTER_SAVE_S - time.time()))
    killed_at = time.time()
    os.kill(save["pid"], signal.SIGKILL)
    old = [stamp for stamp in _stamps(events) if stamp["pid"] == save["pid"]]

    def new_phases() -> dict[str, Stamp] | None:
        phases: dict[str, Stamp] = {}
        for stamp in _stamps(events):
            if stamp["t"] > killed_at and stamp["pid"] != save["pid"]:
                phases.setdefault(stamp["event"], stamp)
        return phases if "step" in phases else None

    new = wait_for("the first new step", new_phases, RECOVERY_LIMIT_S)
    return _figures(killed_at, new, reached=old[-1]["step"], saved=save["step"])


def _figures(killed_at: float, new: dict[str, Stamp], *, reached: int, saved: int) -> dict[str, float]:
    at = {event: stamp["t"] for event, stamp in new.items()}
    own_s = at["step"] - at["imported"]
    return {
        "total_s": at["step"] - killed_at,
        "overhead_s": at["step"] - killed_at - own_s,
        "until_entered_s": at["entered"] - killed_at,
        "imports_s": at["imported"] - at["entered"],
        "set_up_s": at["built"] - at["imported"],
        "load_s": at["loaded"] - at["built"],
        "first_step_s": at["step"] - at["loaded"],
        "lost_steps": reached - new["loaded"]["step"],
        "lost_at_least": reached - saved,
    }


# The three sides


@contextlib.contextmanager
def _torchrun(folder: Path, env: Mapping[str, str]) -> Iterator[None]:
    launch = ["--nproc-per-node=1", "--max-restarts=1000", f"--master-port={free_port()}"]
    command = [sys.executable, "-m", "torch.distributed.run", *launch, str(SIDES_FOLDER / "torchrun_side.py")]
    with running(command, {**env, "CHECKPOINT": str(folder / "state.pt")}, folder / "log"):
        yield


@contextlib.contextmanager
def _ray_train(folder: Path, env: Mapping[str, str], **more: str) -> Iterator[None]:
    command = [sys.executable, str(SIDES_FOLDER / "ray_train_side.py")]
    places = {"STORAGE": str(folder / "storage"), "RAY_FOLDER": str(folder / "ray")}
    with running(command, {**env, **places, **more}, folder / "log"):
        yield


@contextlib.contextmanager
def _ray_train_tuned(folder: Path, env: Mapping[str, str]) -> Iterator[None]:
    """Looks after its workers ten times as often as by default."""
    with _ray_train(folder, env, RAY_TRAIN_HEALTH_CHECK_INTERVAL_S="0.2"):
        yield


@contextlib.contextmanager
def _orch(folder: Path, env: Mapping[str, str]) -> Iterator[None]:
    """Defaults, but for what the others have too: no limit to failures, a checkpoint every tenth step."""
    work = folder / "work"
    work.mkdir()
    for name in ("body.py", "orch_side.py"):
        shutil.copy(SIDES_FOLDER / name, work / name)
    job = {
        "name": "recovery",
        "run": "python orch_side.py",
        "env": {name: env[name] for name in ("EVENTS", "WIDTH")},
        "checkpoint": {"every": {"steps": 10}, "keep": {"last": 2}},
        "restart": {"max_failures": "unlimited"},
    }
    (work / "job.yaml").write_text(json.dumps(job))  # JSON is YAML
    server = Server(folder / "home", dict(env))
    try:
        job_id = server.submit(work)
        yield
        server.cli("cancel", "--now", job_id)
    finally:
        server.stop()


SIDES: dict[str, Side] = {
    "torchrun": _torchrun,
    "ray-train": _ray_train,
    "ray-train-tuned": _ray_train_tuned,
    "orch": _orch,
}
DEFAULT_SIDES = ["torchrun", "ray-train", "orch"]
