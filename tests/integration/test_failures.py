"""What restarting cannot help ends a job at once, with what a person needs to know."""

from __future__ import annotations

from pathlib import Path

import pytest

from orch_workers.config import WorkerPaths
from support.jobs import Gate, log_of, wait_output, write_job
from support.leftovers import of_jobs
from support.server import Server, wait_for

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("own_jobs")]

NO_WAIT = {"backoff": {"initial": 0, "max": 0}}

BEFORE_THE_FIRST_STEP = {
    "import error": ("python train.py", "import no_such_module\n", "No module named 'no_such_module'"),
    "syntax error": ("python train.py", "def f(:\n", "SyntaxError"),
    "usage": (
        "python train.py --wrong",
        "import argparse\nargparse.ArgumentParser().parse_args()\n",
        "--wrong",
    ),
    "no such script": ("python gone.py", "", "gone.py"),
}


@pytest.mark.parametrize("case", BEFORE_THE_FIRST_STEP)
def test_before_the_first_step(case: str, server: Server, tmp_path: Path) -> None:
    run, script, said = BEFORE_THE_FIRST_STEP[case]
    job = server.submit(
        write_job(tmp_path / "work", run, {"train.py": f"# import orch\n{script}"}, restart=NO_WAIT)
    )
    found = server.wait(job, check=1)
    assert (found["state"], found["restarts"], found["attempt"]) == ("FAILED", 0, 1)
    assert found["charges"]["failures"] == 0
    shown = server.cli("status", job).stdout
    assert said in shown
    assert said in found["reason"] + (found["error"] or "")
    if "Error" in said:
        assert "Traceback" in found["error"] or "File" in found["error"]


CRASH_LOOP = """
import sys, orch
run = orch.training(total=[0])
while True:
    if run.step_count == 4:
        raise RuntimeError("step four is cursed")
    run.values["total"][0] += 1
    run.step()
"""


def test_crash_loop(server: Server, tmp_path: Path) -> None:
    """Its own non-zero exit, twice at the same step: two starts, however large the budget is."""
    folder = write_job(
        tmp_path / "work", "python train.py", {"train.py": CRASH_LOOP},
        checkpoint={"every": {"steps": 1}}, restart={"max_failures": 50, **NO_WAIT},
    )  # fmt: skip
    job = server.submit(folder)
    found = server.wait(job, check=1)
    starts = [start for attempt in found["attempts"] for start in attempt["restarts"]]
    assert [start["exit_code"] for start in starts] == [1, 1]
    assert 1 <= starts[1]["restored_step"] <= 4
    assert found["state"] == "FAILED"
    assert "step 4" in found["reason"]
    assert "RuntimeError: step four is cursed" in found["error"]
    assert "RuntimeError: step four is cursed" in server.cli("status", job).stdout


MISMATCH = """
import os, signal, sys, torch, orch
units = 10 if os.environ["ORCH_GENERATION"] == "000001.000001" else 20
model = torch.nn.Sequential(torch.nn.Linear(4, units))
run = orch.training(model=model)
for _ in range(3):
    run.step()
run.save()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_restore_mismatch(server: Server, tmp_path: Path) -> None:
    """10 units in the stored layer, 20 in the new one: a clear error, at once, and no budget is burnt."""
    folder = write_job(
        tmp_path / "work", "python train.py", {"train.py": MISMATCH},
        checkpoint={"every": {"steps": 1}}, restart={"max_failures": 10, **NO_WAIT},
    )  # fmt: skip
    job = server.submit(folder)
    found = server.wait(job, check=1)
    starts = [start for attempt in found["attempts"] for start in attempt["restarts"]]
    assert len(starts) == 2, "the one that made the checkpoint, and the one that could not use it"
    assert found["charges"]["failures"] <= 1
    told = found["reason"] + (found["error"] or "")
    for part in ("model.0.weight", "[10, 4]", "[20, 4]"):
        assert part in told
        assert part in server.cli("status", job).stdout
    assert "model.0.bias" in told + log_of(server, job)
    assert found["checkpoints"], "what is stored stays"


FINISHES_LATER = """
import os, orch
run = orch.training(total=[0])
for _ in run.epochs(2):
    for value in run.batches([1, 2, 3]):
        run.values["total"][0] += value
        run.step(loss=1 / run.values["total"][0])
        if run.step_count == 5 and os.environ["ORCH_GENERATION"] == "000001.000001":
            os._exit(9)
print("total", run.values["total"])
"""


def test_an_exit_that_does_not_come_again(server: Server, tmp_path: Path) -> None:
    """Once is no loop: restored, and finished; nothing was done twice that was saved."""
    folder = write_job(
        tmp_path / "work", "python train.py", {"train.py": FINISHES_LATER},
        checkpoint={"every": {"steps": 1}}, restart=NO_WAIT,
    )  # fmt: skip
    job = server.submit(folder)
    found = server.wait(job)
    assert found["restarts"] == 1
    assert (found["step"], found["metrics"]["loss"]) == (6, 1 / 12)
    assert log_of(server, job).splitlines()[-1].endswith("total [12]")
    assert found["goodput"] is not None
    told = server.cli("status", job).stdout
    assert "exit code 9" in told
    assert "restored step" in told


LOSES_ITSELF = """
import os, signal, orch
run = orch.training(total=[0])
run.values["total"][0] = 1
run.step()
run.save()
print("saved", flush=True)
open(os.environ["GATE"]).read()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_nothing_restorable(server: Server, tmp_path: Path) -> None:
    """Every copy of its state is damaged: the job stops and says so, and never starts over silently. Exit code 7."""
    gate = Gate(tmp_path)
    folder = write_job(
        tmp_path / "work", "python train.py", {"train.py": LOSES_ITSELF}, env={"GATE": str(gate.path)},
        checkpoint={"every": {"steps": 1}}, restart=NO_WAIT,
    )  # fmt: skip
    job = server.submit(folder)
    wait_output(server, job, "saved")
    wait_for("it is in storage", lambda: server.job(job)["checkpoints"])
    paths = WorkerPaths(job, 0, server.home / "node", server.home / "jobs")
    shards = (server.home / "storage" / job / "shards").rglob("*.safetensors")
    for path in [*paths.snapshots.glob("slot-*"), *shards]:
        with path.open("r+b") as file:  # in place: the agent has them mapped
            file.write(b"\xff" * path.stat().st_size)
    gate.open()
    said = server.cli("wait", job, check=7).stdout
    assert "BLOCKED" in said
    found = server.job(job)
    assert found["state"] == "BLOCKED"
    assert "does not match its digest" in found["reason"]
    assert "nothing was started" in found["reason"]
    assert not [left for left in of_jobs(server.home, [job]) if left.startswith("process")]
    assert "BLOCKED" in server.cli("status", job).stdout
    server.cli("cancel", job)
    assert server.job(job)["state"] == "CANCELLED"
    assert not of_jobs(server.home, [job]), "what it held in memory was kept for whoever looked, until now"
