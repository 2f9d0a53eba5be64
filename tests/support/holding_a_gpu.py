"""The GPU of an agent that was lost on a living node is free before the next generation starts there."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Any

import psutil

from support.jobs import wait_output, write_job
from support.nodes import CPUS
from support.recovery import kill
from support.server import alive, wait_for

if TYPE_CHECKING:
    import random
    from pathlib import Path

    from support.nodes import Pool
    from support.server import Server

TRAIN = """
import hashlib, os, pathlib, signal
import orch

mine = pathlib.Path(os.environ["ORCH_CHECKPOINT_DIR"])
mine.mkdir(parents=True, exist_ok=True)
holders = mine / "holders"
gpu = os.environ["CUDA_VISIBLE_DEVICES"]

def lives(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False

before = holders.read_text().split() if holders.exists() else []
with holders.open("a") as file:
    child = os.fork()
    if child == 0:
        signal.pause()
        os._exit(0)
    file.write(f"{os.getpid()} {child}\\n")
print("gpu", gpu, "shared with", [pid for pid in before if lives(pid)], "after", len(before), flush=True)
run = orch.training(count={})
for _ in run.epochs(1):
    for _ in run.batches(range(400)):
        hashlib.pbkdf2_hmac("sha256", b"work", b"of a step", 20_000)
        run.step()
os.kill(child, 9)
"""


def gpu_still_held(server: Server, pool: Pool, rng: random.Random, folder: Path) -> dict[str, Any]:
    """Guard and training process are stopped when the agent is killed: nobody gives the GPU back until they wake up."""
    pool.two()
    write_job(
        folder, "python train.py", {"train.py": TRAIN}, name="gpu",
        resources={"cpus": CPUS, "gpus": 1}, checkpoint={"every": {"steps": 20}},
    )  # fmt: skip
    job = server.submit(folder)
    wait_output(server, job, "gpu 0 shared with [] after 0")
    step = rng.randrange(10, 60)
    wait_for("it works", lambda: (server.job(job)["step"] or 0) > step)
    training = server.pid(job, "ProcessStarted")
    tree = [training, *(child.pid for child in psutil.Process(training).children(recursive=True))]
    guard = psutil.Process(training).ppid()
    for pid in (guard, training):  # that one would notice that its agent is gone
        os.kill(pid, signal.SIGSTOP)
    kill(server.pid(job, "AgentUp"))
    wait_for("the next agent has answered", lambda: _attempts(server, job) == [1, 2])
    # In the time of a whole other job it would have started its process, if it did not wait.
    server.wait(server.submit(write_job(folder / "other", "true", name="other")))
    assert all(alive(pid) for pid in tree), "or there is nothing to wait for"
    assert len([event for event in server.events(job) if event["type"] == "ProcessStarted"]) == 1
    os.kill(guard, signal.SIGCONT)
    log = wait_output(server, job, "gpu 0 shared with [] after 2")
    assert not any(alive(pid) for pid in tree)
    assert log.count("shared with []") == log.count("shared with")
    server.wait(job)
    return {"held_by": len(tree)}


def _attempts(server: Server, job: str) -> list[int]:
    return [event["data"]["attempt"] for event in server.events(job) if event["type"] == "AgentUp"]
