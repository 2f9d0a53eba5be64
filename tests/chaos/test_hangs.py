"""Training that stands still, for real: seen, its stacks written down, ended, restarted in place."""

from __future__ import annotations

import pytest

from support.jobs import write_job
from support.leftovers import of_jobs
from support.recovery import assert_recovered
from support.server import Server, wait_for

pytestmark = pytest.mark.chaos

STEPS, HANGS_AT = 60, 30
TRAIN = f"""
import ctypes, os, signal, subprocess, sys, threading
import torch
import orch

def deadlock():
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()

def gil_held_in_c():
    ctypes.PyDLL(None).sleep(100000)

def endless_collective():
    import torch.distributed as dist
    join = "import sys, torch.distributed as d; d.init_process_group('gloo', init_method=sys.argv[1], rank=1,"
    join += " world_size=2); import signal; signal.pause()"
    address = f"file://{{os.getcwd()}}/meet"
    subprocess.Popen([sys.executable, "-c", join, address])
    dist.init_process_group("gloo", init_method=address, rank=0, world_size=2)
    dist.barrier()

def stopped():
    os.kill(os.getpid(), signal.SIGSTOP)

torch.manual_seed(1)
torch.set_num_threads(1)
model = torch.nn.Linear(4, 4)
run = orch.training(model=model)
first = os.environ["ORCH_GENERATION"] == "000001.000001"
for _ in run.epochs(1):
    for number in run.batches(range({STEPS})):
        run.step()
        if first and run.step_count == {HANGS_AT}:
            globals()[os.environ["HOW"]]()
"""
STACK = {
    "deadlock": "deadlock (train.py:",
    "gil_held_in_c": "gil_held_in_c (train.py:",
    "endless_collective": "endless_collective (train.py:",
    "stopped": "stopped by a signal",
}


@pytest.fixture(scope="module")
def hung(server: Server, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """One job for each way, all at once: they wait, and need nothing."""
    jobs = {}
    for how in STACK:
        folder = write_job(
            tmp_path_factory.mktemp(how), "python train.py", {"train.py": TRAIN}, name="hung",
            env={"HOW": how}, checkpoint={"every": {"steps": 10}}, restart={"hang": "3s", "standby": False},
        )  # fmt: skip
        jobs[how] = server.submit(folder)
    return jobs


@pytest.mark.parametrize("how", STACK)
def test_it_is_seen_and_restarted_in_place(server: Server, hung: dict[str, str], how: str) -> None:
    job = hung[how]
    detail = server.wait(job)
    assert_recovered(detail, kills=1)
    restart = detail["attempts"][0]["restarts"][1]
    assert detail["attempt"] == 1
    assert detail["step"] == STEPS
    assert restart["restored_from"] == "memory"
    assert restart["restored_step"] <= HANGS_AT
    assert "no progress" in restart["cause"]
    decided = [event["data"] for event in server.events(job) if event["type"] == "RestartDecided"]
    assert [decision["charge_to"] for decision in decided] == ["hangs"]
    log = server.cli("logs", job).stdout
    assert "What its processes were doing" in log
    assert STACK[how] in log
    wait_for("nothing is left", lambda: not of_jobs(server.home, [job]))
