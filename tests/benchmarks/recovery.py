"""SIGKILL of the training process to its first new step: torchrun, Ray Train and orch under one script body.

The total is what a user waits. The overhead is the total without what the script itself does after its imports
(set-up, loading the state, the first step), which every side stamps for itself: it is what the side costs.
Interpreter start and imports count as overhead. For orch, what it tells of the same recoveries stands below
(``told_…``): the parts of the Recovered event, counted from the exit that the guard saw.

With the agent as victim (orch alone has one) the parts are those of its events: until the loss was written down, from
there until the next agent answered, from there until it had started the process, and the rest until the script's
first line. The state then comes from the slots that the next agent adopts; a restore from storage is an error here.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from tests.benchmarks.processes import running, scratch
from tests.benchmarks.report import Report
from tests.support.server import Server, wait_for

from orch.control.raylocal import free_port
from orch.control.views import parse_time_us

SIDES_FOLDER = Path(__file__).parent / "sides"
VICTIMS = ("process", "agent")
WIDTH = 5120
"""Of a square of float32: 100 MiB."""
NUMBER_BYTES = 4
SAVES_BEFORE_KILL = 2
WORKS_S = 6.0
"""Between the first step of a process and its end, at least: a job at work, not one that has just begun."""
AFTER_SAVE_STEPS = 6
"""A kill comes so many steps after a save: within them every side must be able to use that save."""
START_LIMIT_S = 120.0
RECOVERY_LIMIT_S = 120.0

Stamp = dict[str, Any]


@dataclass(frozen=True)
class Running:
    """A side at work."""

    told: Callable[[int], dict[str, float]] = lambda number: {}
    """What the side itself tells of the recovery of the training process with this number, from 1."""
    agent_pid: Callable[[], int] | None = None
    told_of_agent: Callable[[float], dict[str, float]] | None = None
    """The same of the recovery of an agent that was killed then (seconds since 1970)."""


Side = Callable[[Path, Mapping[str, str]], contextlib.AbstractContextManager[Running]]


def measure(
    kills: int,
    sides: list[str],
    console: Console,
    *,
    state_bytes: int | None = None,
    works_s: float = WORKS_S,
    victim: str = VICTIMS[0],
) -> Report:
    width = WIDTH if state_bytes is None else math.isqrt(state_bytes // NUMBER_BYTES)
    facts = {"width": width, "state_bytes": width**2 * NUMBER_BYTES, "kills": kills, "works_s": works_s}
    report = Report(f"recovery, {victim} killed", by="overhead_s", ours="orch", facts=facts)
    for name in sides:
        with scratch(name) as folder:
            events = folder / "events"
            events.touch()
            env = {**_environment(), "EVENTS": str(events), "WIDTH": str(width)}
            with SIDES[name](folder, env) as side:
                for number in range(1, kills + 1):
                    if victim == "agent":
                        assert side.agent_pid is not None, f"{name} has no agent"
                        assert side.told_of_agent is not None
                        killed_at, found = _kill_once(events, works_s, side.agent_pid)
                        found |= side.told_of_agent(killed_at)
                    else:
                        _, found = _kill_once(events, works_s)
                        found |= side.told(number)
                    report.add(name, **found)
                    console.print(f"{name} {number}/{kills}: {found['total_s']:.2f} s to the first new step")
    return report


def _environment() -> dict[str, str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith(("ORCH_", "RAY_"))}
    return {**env, "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled", "PYTHONUNBUFFERED": "1"}


def _stamps(events: Path) -> list[Stamp]:
    # The last line may still be being written.
    return [json.loads(line) for line in events.read_text().splitlines(keepends=True) if line.endswith("\n")]


def _kill_once(
    events: Path, works_s: float, victim_pid: Callable[[], int] | None = None
) -> tuple[float, dict[str, float]]:
    """When it was, and what it cost. The training process is the victim unless another one is named."""
    seen = len(_stamps(events))

    def saved() -> Stamp | None:
        """A save by a process that has worked for a while."""
        found = _stamps(events)[seen:]
        begun_s = min((stamp["t"] for stamp in found if stamp["event"] == "step"), default=math.inf)
        saves = [stamp for stamp in found if stamp["event"] == "saved"][SAVES_BEFORE_KILL - 1 :]
        return next((save for save in saves if save["t"] >= begun_s + works_s), None)

    save = wait_for("the training saves", saved, START_LIMIT_S)

    def went_on() -> bool:
        steps = [
            stamp
            for stamp in _stamps(events)[seen:]
            if stamp["event"] == "step" and stamp["pid"] == save["pid"]
        ]
        return bool(steps) and steps[-1]["step"] >= save["step"] + AFTER_SAVE_STEPS

    wait_for("the training goes on after its save", went_on, START_LIMIT_S)
    pid = save["pid"] if victim_pid is None else victim_pid()
    killed_at = time.time()
    os.kill(pid, signal.SIGKILL)

    def new_phases() -> dict[str, Stamp] | None:
        phases: dict[str, Stamp] = {}
        for stamp in _stamps(events):
            if stamp["t"] > killed_at and stamp["pid"] != save["pid"]:
                phases.setdefault(stamp["event"], stamp)
        return phases if "step" in phases else None

    new = wait_for("the first new step", new_phases, RECOVERY_LIMIT_S)
    # Only now: the training process outlives its agent by the moment that the guard needs to end it.
    old = [stamp for stamp in _stamps(events) if stamp["pid"] == save["pid"]]
    return killed_at, _figures(killed_at, new, reached=old[-1]["step"], saved=save["step"])


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
def _torchrun(folder: Path, env: Mapping[str, str]) -> Iterator[Running]:
    launch = ["--nproc-per-node=1", "--max-restarts=1000", f"--master-port={free_port()}"]
    command = [sys.executable, "-m", "torch.distributed.run", *launch, str(SIDES_FOLDER / "torchrun_side.py")]
    with running(command, {**env, "CHECKPOINT": str(folder / "state.pt")}, folder / "log"):
        yield Running()


@contextlib.contextmanager
def _ray_train(folder: Path, env: Mapping[str, str], **more: str) -> Iterator[Running]:
    command = [sys.executable, str(SIDES_FOLDER / "ray_train_side.py")]
    places = {"STORAGE": str(folder / "storage"), "RAY_FOLDER": str(folder / "ray")}
    with running(command, {**env, **places, **more}, folder / "log"):
        yield Running()


@contextlib.contextmanager
def _ray_train_tuned(folder: Path, env: Mapping[str, str]) -> Iterator[Running]:
    """Looks after its workers ten times as often as by default."""
    with _ray_train(folder, env, RAY_TRAIN_HEALTH_CHECK_INTERVAL_S="0.2") as side:
        yield side


@contextlib.contextmanager
def _orch(folder: Path, env: Mapping[str, str], **restart: bool) -> Iterator[Running]:
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
        "restart": {"max_failures": "unlimited", **restart},
    }
    (work / "job.yaml").write_text(json.dumps(job))  # JSON is YAML
    server = Server(folder / "home", dict(env))
    try:
        job_id = server.submit(work)
        yield Running(
            lambda number: _told(server, job_id, number),
            lambda: server.pid(job_id, "AgentUp"),
            lambda killed_at: _told_of_agent(server, job_id, killed_at),
        )
        server.cli("cancel", "--now", job_id)
    finally:
        server.stop()


@contextlib.contextmanager
def _orch_without(folder: Path, env: Mapping[str, str]) -> Iterator[Running]:
    """Every start is a fresh one."""
    with _orch(folder, env, standby=False) as side:
        yield side


def _told(server: Server, job_id: str, number: int) -> dict[str, float]:
    def recovered() -> dict[str, Any] | None:
        found = [
            event["data"] for event in server.client().events(job_id).events if event["type"] == "Recovered"
        ]
        costs = [data for data in found if data["recovery_s"] is not None]
        return costs[number - 1] if len(costs) >= number else None

    data: dict[str, Any] = wait_for("the recovery is told", recovered, RECOVERY_LIMIT_S)
    return {
        "told_standby": float(data["standby"]),
        **{f"told_{part}": s for part, s in data["breakdown"].items()},
    }


def _told_of_agent(server: Server, job_id: str, killed_at: float) -> dict[str, float]:
    """Parts that add up to the time until the process was started."""
    wanted = ("AgentLost", "AgentUp", "ProcessStarted", "Restored")

    def recovered() -> dict[str, tuple[float, dict[str, Any]]] | None:
        found: dict[str, tuple[float, dict[str, Any]]] = {}
        for event in server.client().events(job_id).events:
            at = parse_time_us(event["time"]) / 1e6
            if at > killed_at:
                found.setdefault(event["type"], (at, event["data"]))
        return found if found.keys() >= {*wanted} else None

    events = wait_for("the recovery is told", recovered, RECOVERY_LIMIT_S)
    source = events["Restored"][1]["source"]
    assert source == "memory", f"restored from {source}: the slots were not adopted"
    lost, up, started = (events[name][0] for name in wanted[:3])
    return {
        "told_seen_s": lost - killed_at,
        "told_next_agent_s": up - lost,
        "told_process_started_s": started - up,
    }


SIDES: dict[str, Side] = {
    "torchrun": _torchrun,
    "ray-train": _ray_train,
    "ray-train-tuned": _ray_train_tuned,
    "orch": _orch,
    "orch-without-standby": _orch_without,
}
DEFAULT_SIDES = ["torchrun", "ray-train", "orch"]
