"""TensorFlow jobs under a real worker, killed by SIGKILL as often as one likes, beside one that nobody disturbs."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from orch_policies.restart import Budgets
from support.server import wait_for
from support.workers import Machine

if TYPE_CHECKING:
    from support.workers import Running

ROOT = Path(__file__).parents[2]
JOBS = ROOT / "tests" / "frameworks" / "jobs"
LIMIT_S = 180.0
QUIET = {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
STEPS_PER_EPOCH = 12


class Undisturbed:
    """The script outside orch, started; `end()` waits for what it leaves."""

    def __init__(self, folder: Path, script: str, env: dict[str, str]) -> None:
        self._folder = folder
        folder.mkdir()
        shutil.copy(JOBS / script, folder / script)
        sources = os.pathsep.join(str(ROOT / name) for name in ("orchestrator", "workers", "policies"))
        with (folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, script],
                cwd=folder,
                env={**os.environ, **QUIET, "PYTHONPATH": sources, "PYTHONHASHSEED": "0", **env},
                stdout=log,
                stderr=log,
            )

    def end(self) -> str:
        try:
            status = self._process.wait(LIMIT_S)
        finally:
            self._process.kill()
        assert status == 0, (self._folder / "log").read_text()
        return (self._folder / "final.txt").read_text()


def start(
    machine: Machine, script: str, every: int, env: dict[str, str], *, standby: bool = False
) -> Running:
    """The script as a job whose first `KILL_AT` kills are forgiven."""
    shutil.copy(JOBS / script, machine.workdir / script)
    return machine.worker(
        run=f"{sys.executable} {script}",
        env={**QUIET, **env},
        every_steps=every,
        policy={"budgets": Budgets(max_failures=1000, backoff_initial_s=0.0, backoff_max_s=0.0).to_dict()},
        standby=standby,
        hang="off",
    )


def finish(machine: Machine, running: Running, limit_s: float = LIMIT_S) -> str:
    """What the job leaves, once it has succeeded."""
    wait_for("the job's end", lambda: running.told("WorkerEnded"), limit_s)
    end = running.told("WorkerEnded")[0]
    assert end["outcome"] == "succeeded", (end, running.notes())
    return (machine.workdir / "final.txt").read_text()


def kills(rng: random.Random, count: int) -> dict[str, Any]:
    """For the soak: `count` SIGKILLs over one run, and equal bytes at the end."""
    epochs = 2 + count
    steps = epochs * STEPS_PER_EPOCH
    at = sorted(rng.sample(range(2, steps - 1), count))
    env = {"EPOCHS": str(epochs)}
    patch = pytest.MonkeyPatch()
    folder = Path(tempfile.mkdtemp(prefix="orch-"))
    calm_folder = Path(tempfile.mkdtemp(prefix="orch-"))
    machine = Machine(folder, patch)
    try:
        calm = Undisturbed(calm_folder / "calm", "train_tf.py", env).end()
        running = start(machine, "train_tf.py", 5, {**env, "KILL_AT": ",".join(map(str, at))}, standby=True)
        found = finish(machine, running, LIMIT_S + 30.0 * count)
        restored = [(event["step"], event["source"]) for event in running.told("Restored")]
        assert len(running.told("ProcessStarted")) == count + 1
        assert found == calm, "the final bytes differ"
    finally:
        machine.close()
        patch.undo()
        shutil.rmtree(calm_folder)
    return {"kills_at_steps": at, "restored": restored, "equal_bytes": True}
