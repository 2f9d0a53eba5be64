"""Estimators of TensorFlow 2.15, in an environment that orch builds for them, killed in the middle."""

from __future__ import annotations

import random
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from orch_policies.restart import Budgets
from support.files import EXAMPLES, kill, log_of, newest, restored, wait_log
from support.server import wait_for
from support.workers import Machine

if TYPE_CHECKING:
    from support.workers import Running

JOBS = Path(__file__).parents[1] / "frameworks" / "jobs"
REQUIREMENTS = EXAMPLES / "unchanged/estimator/requirements.txt"
PYTHON = {"version": "3.11", "requirements": "requirements.txt"}
QUIET = {
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "TF_NUM_INTRAOP_THREADS": "1",
    "TF_NUM_INTEROP_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
}
LIMIT_S = 300.0
"""A build, and starts of TensorFlow on a busy machine."""
HOLD_AT = 25
FILES = ("models/iris/**",)
GOES_ON = {"policy": {"budgets": Budgets(backoff_initial_s=0.0, backoff_max_s=0.0).to_dict()}, "hang": "off"}


def share_environments(machine: Machine, folder: Path) -> None:
    """What one machine builds, the next one of the same test module finds."""
    folder.mkdir(exist_ok=True)
    place = machine.config().paths.environments
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(folder)


def start(machine: Machine, kind: str, *, hold: int = 0, **more: Any) -> Running:
    """frameworks/jobs/train_estimator.py; the folders that it makes up lie on the machine."""
    shutil.copy(REQUIREMENTS, machine.workdir / "requirements.txt")
    shutil.copy(JOBS / "train_estimator.py", machine.workdir)
    made_up = machine.folder / "made-up"
    made_up.mkdir(exist_ok=True)
    env = {**QUIET, "TMPDIR": str(made_up), "HOLD": str(hold)}
    return machine.worker(
        run=f"python train_estimator.py {kind}", python=PYTHON, env=env, standby=False, **GOES_ON, **more
    )


def end(running: Running) -> dict[str, Any]:
    found: dict[str, Any] = wait_for("its end", lambda: running.told("WorkerEnded"), LIMIT_S)[0]
    assert found["outcome"] == "succeeded", (found, log_of(running)[-3000:])
    return found


def final(machine: Machine) -> str:
    return (machine.workdir / "final.txt").read_text()


def wait_held(machine: Machine) -> None:
    wait_for("it waits to be killed", (machine.workdir / "held").exists, LIMIT_S)


def killed(machine: Machine, kind: str) -> tuple[Running, str]:
    """Killed once in the middle, then at its end; and what it ended with."""
    more: dict[str, Any] = {"every_steps": 5} if kind == "hook" else {"files": FILES}
    one = start(machine, kind, hold=HOLD_AT, **more)
    wait_held(machine)
    wait_for("it is kept", lambda: newest(one) > 0 if kind != "hook" else kept_steps(one), LIMIT_S)
    kill(one)
    end(one)
    return one, final(machine)


def kept_steps(running: Running) -> list[int]:
    return [event["step"] for event in running.told("CheckpointCommitted") if event["step"] >= HOLD_AT - 5]


def lost(machine: Machine) -> str:
    """No model_dir: what a person is told when nothing has matched after one interval."""
    one = start(machine, "lost", hold=HOLD_AT, files=FILES, every_seconds=1.0)
    wait_held(machine)
    one.wait_note("made-up")
    assert not one.aware(), "nothing keeps its state"
    kill(one)
    end(one)
    return one.notes()


def estimators(rng: random.Random, count: int) -> dict[str, Any]:
    """For the soak: every kind killed `count` times over, each against an undisturbed one."""
    told: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="orch-e-") as shared:
        for kind in ("files", "scaffold", "hook"):
            calm = _on_machine(
                shared, lambda machine, kind=kind: (end(start(machine, kind)), final(machine))[1]
            )
            told[kind] = []
            for _ in range(count):
                one, found = _on_machine(shared, lambda machine, kind=kind: killed(machine, kind))
                assert found == calm, f"{kind}: the final bytes differ"
                told[kind].append(restored(one))
        notes = _on_machine(shared, lost)
        assert "made-up" in notes
    return {"restored": told, "equal_bytes": True, "hint": notes.splitlines()[-1]}


def _on_machine(shared: str, act: Any) -> Any:
    patch = pytest.MonkeyPatch()
    machine = Machine(Path(tempfile.mkdtemp(prefix="orch-")), patch)
    try:
        share_environments(machine, Path(shared))
        return act(machine)
    finally:
        machine.close()
        patch.undo()


__all__ = ["QUIET", "end", "estimators", "final", "killed", "lost", "share_environments", "start", "wait_log"]
