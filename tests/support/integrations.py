"""Examples whose loop is somebody else's (Lightning, Hugging Face), run by hand and as a job that is killed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from orch_policies.restart import Budgets
from support.files import EXAMPLES, kill, log_of
from support.server import wait_for

if TYPE_CHECKING:
    from support.workers import Machine, Running

LIMIT_S = 300.0
"""Starts of a framework on a busy machine."""
ROOT = Path(__file__).parents[2]
THREADS = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
# Stands still after a step of each start, as a job does that is to be killed there, the step before it saved.
STOPS = """
    import os, signal, sys

    from orch_workers.training.run import Run

    sys.path.insert(0, "")
    step, start = Run.step, int(os.environ["ORCH_GENERATION"].split(".")[1])
    hold_at = dict(enumerate(map(int, sys.argv[1:]), 1)).get(start)

    def stepping(run, **metrics):
        step(run, **metrics)
        if hold_at is not None and run.step_count == hold_at - 1:
            run.save()  # on demand: on a slow machine those that are due may be skipped
        if run.step_count == hold_at:
            os.mkfifo(f"held-{hold_at}")
            signal.pause()

    Run.step = stepping
    sys.argv = ["train.py"]
    exec(compile(open("train.py").read(), "train.py", "exec"))
"""


def by_hand(name: str, folder: Path) -> Path:
    """The example from beginning to end, undisturbed; its folder."""
    shutil.copytree(EXAMPLES / name, folder)
    sources = os.pathsep.join(str(ROOT / part) for part in ("orchestrator", "workers", "policies"))
    done = subprocess.run(
        [sys.executable, "train.py"],
        cwd=folder,
        env={**os.environ, **THREADS, "PYTHONPATH": sources, "PYTHONHASHSEED": "0"},
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT_S,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def as_job(machine: Machine, name: str, *hold_at: int, **more: Any) -> Running:
    """The example as a job, killed at one step of each start, and at its end."""
    shutil.copytree(EXAMPLES / name, machine.workdir, dirs_exist_ok=True)
    job = yaml.safe_load((EXAMPLES / name / "job.yaml").read_text())
    (machine.workdir / "stops.py").write_text(textwrap.dedent(STOPS))
    more = {"every_steps": job["checkpoint"]["every"]["steps"], **more}
    one = machine.worker(
        run=" ".join(["python", "stops.py", *map(str, hold_at)]),
        env={**THREADS, "PYTHONHASHSEED": "0"},
        policy={"budgets": Budgets(backoff_initial_s=0.0, backoff_max_s=0.0).to_dict()},
        hang="off",
        standby=False,
        **more,
    )
    for step in hold_at:
        wait_for("it waits to be killed", (machine.workdir / f"held-{step}").exists, LIMIT_S)
        kill(one)
    ended = wait_for("its end", lambda: one.told("WorkerEnded"), LIMIT_S)[0]
    assert ended["outcome"] == "succeeded", (ended, log_of(one)[-3000:])
    return one


def flat(value: Any, path: str = "") -> dict[str, bytes]:
    """Every tensor and number of what torch.load gives, as bytes."""
    if hasattr(value, "detach"):
        return {path: value.detach().numpy().tobytes()}
    if isinstance(value, dict):
        value = list(value.items())
    elif isinstance(value, (list, tuple)):
        value = list(enumerate(value))
    else:
        return {path: repr(value).encode()}
    found: dict[str, bytes] = {}
    for key, item in value:
        found |= flat(item, f"{path}/{key}")
    return found
