"""The example of two TensorFlow workers (MultiWorkerMirroredStrategy), one of them killed in the middle. No Ray."""

from __future__ import annotations

import random
import tempfile
import textwrap
from pathlib import Path
from typing import Any

import pytest

from orch_policies.restart import Budgets
from support.files import example
from support.gangs import Gang
from support.server import wait_for
from support.workers import Machine

LIMIT_S = 300.0
"""Two starts of TensorFlow on two cores."""
HOLD_AT = 35
ENV = {
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "TF_NUM_INTRAOP_THREADS": "1",
    "TF_NUM_INTEROP_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "EPOCHS": "2",
}
AT_ONCE = {"budgets": Budgets(backoff_initial_s=0.0, backoff_max_s=0.0).to_dict()}
# Stands still at a step of the first start, as a job does that is to be killed there; says what it found.
STOPS = """
    import os, signal, sys

    import orch

    print("TF_CONFIG", os.environ["TF_CONFIG"], flush=True)
    first, begin = os.environ["ORCH_GENERATION"] == "000001.000001", orch.training

    def training(**objects):
        run = begin(**objects)
        step = run.step

        def stepping(**metrics):
            step(**metrics)
            if first and run.step_count == int(sys.argv[1]):
                signal.pause()

        run.step = stepping
        return run

    orch.training = training
    exec(compile(open("train.py").read(), "train.py", "exec"))
"""


def start(machine: Machine, hold_at: int = 0) -> Gang:
    gang = Gang(
        machine, policy=AT_ONCE, env=ENV, every_steps=10, run=f"python stops.py {hold_at}", hang="off"
    )
    example(machine, "tensorflow_workers")
    (machine.workdir / "stops.py").write_text(textwrap.dedent(STOPS))
    for rank in range(gang.size):
        gang.place(rank, 1)
    return gang


def finish(gang: Gang) -> str:
    """What rank 0 leaves."""
    for member in gang.ranks.values():
        ended: Any = wait_for("its end", lambda member=member: member.told("WorkerEnded"), LIMIT_S)
        assert ended[0]["outcome"] == "succeeded", (ended, member.paths.log.read_text()[-3000:])
    return (gang.machine.workdir / "final.txt").read_text()


def kill_one(gang: Gang, rank: int) -> None:
    wait_for("both wait", lambda: all(one.step >= HOLD_AT for one in gang.ranks.values()), LIMIT_S)
    gang.ranks[rank].kill_process()


def configs(gang: Gang, rank: int) -> list[str]:
    """TF_CONFIG of each start."""
    lines = gang.ranks[rank].paths.log.read_text().splitlines()
    return [line.removeprefix("TF_CONFIG ") for line in lines if line.startswith("TF_CONFIG ")]


def workers(rng: random.Random, count: int) -> dict[str, Any]:
    """For the soak: `count` kills of one worker, each against a gang that nobody disturbed."""
    calm = _on_machine(lambda machine: finish(start(machine)))
    ranks = []
    for _ in range(count):
        ranks.append(rng.randrange(2))

        def killed(machine: Machine, rank: int = ranks[-1]) -> str:
            gang = start(machine, HOLD_AT)
            kill_one(gang, rank)
            return finish(gang)

        assert _on_machine(killed) == calm, "the final bytes differ"
    return {"killed_ranks": ranks, "equal_bytes": True}


def _on_machine(act: Any) -> Any:
    patch = pytest.MonkeyPatch()
    machine = Machine(Path(tempfile.mkdtemp(prefix="orch-")), patch)
    try:
        return act(machine)
    finally:
        machine.close()
        patch.undo()
