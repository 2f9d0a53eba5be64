"""The GPU of an agent that was lost on a living node is free before the next generation starts there."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path

import psutil
import pytest

from support.jobs import wait_output, write_job
from support.nodes import CPUS, Node
from support.recovery import kill
from support.server import Server, alive, wait_for

pytestmark = pytest.mark.chaos

TRAIN = """
import os, pathlib, time
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
        time.sleep(1000)
        os._exit(0)
    file.write(f"{os.getpid()} {child}\\n")
print("gpu", gpu, "shared with", [pid for pid in before if lives(pid)], "after", len(before), flush=True)
run = orch.training(count={})
for _ in run.epochs(1):
    for _ in run.batches(range(400)):
        time.sleep(0.01)
        run.step()
os.kill(child, 9)
"""


def test_nothing_of_the_generation_before_is_there_when_the_next_one_starts(
    server: Server, tmp_path: Path, rng: random.Random
) -> None:
    """Its guard is stopped when the agent is killed: what it guards lives on for as long as it sleeps."""
    node = Node(server, gpus=1)
    try:
        node.ready()
        folder = write_job(
            tmp_path, "python train.py", {"train.py": TRAIN}, name="gpu",
            resources={"cpus": CPUS, "gpus": 1}, checkpoint={"every": {"steps": 20}},
        )  # fmt: skip
        job = server.submit(folder)
        wait_output(server, job, "gpu 0 shared with [] after 0")
        wait_for("it works", lambda: (server.job(job)["step"] or 0) > rng.randrange(10, 60))
        training = server.pid(job, "ProcessStarted")
        tree = [training, *(child.pid for child in psutil.Process(training).children(recursive=True))]
        guard = psutil.Process(training).ppid()
        for pid in (guard, training):  # that one would notice that its agent is gone
            os.kill(pid, signal.SIGSTOP)
        kill(server.pid(job, "AgentUp"))
        wait_for("the next agent is there", lambda: server.job(job)["attempt"] == 2)
        wait_for(
            "it has answered",
            lambda: [e for e in server.events(job) if e["type"] == "AgentUp" and e["data"]["attempt"] == 2],
        )
        assert all(alive(pid) for pid in tree), "or there is nothing to wait for"
        assert len([e for e in server.events(job) if e["type"] == "ProcessStarted"]) == 1
        os.kill(guard, signal.SIGCONT)
        log = wait_output(server, job, "gpu 0 shared with [] after 2")
        assert not any(alive(pid) for pid in tree)
        assert log.count("shared with []") == log.count("shared with")
        server.wait(job)
    finally:
        node.remove()
