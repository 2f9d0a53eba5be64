"""Ends as they really are, through a whole server: each is told with its cause, replays with the same decisions, and
its cost stands in the books.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scenarios.record import decisions
from support.jobs import write_job
from support.server import Server

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("own_jobs")]

SCRIPT = """
import ctypes, os, resource, sys, orch
run = orch.training(total=[0])
for _ in run.epochs(3):
    for value in run.batches([1, 2, 3]):
        run.values["total"][0] += value
        run.step(loss=1 / run.values["total"][0])
        if run.step_count == 5 and os.environ["ORCH_GENERATION"] == "000001.000001":
            {end}
"""
ENDS = {
    "killed": ("os.kill(os.getpid(), 9)", "killed by SIGKILL"),
    "segfault": ("ctypes.string_at(0)", "killed by SIGSEGV"),
    "abort": ("os.abort()", "killed by SIGABRT"),
    "exception": ("raise ValueError('bad batch')", "ValueError: bad batch"),
    "exit": ("os._exit(3)", "exited with code 3"),
    "out_of_memory": (
        "resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30)); bytearray(1 << 34)",
        "out of memory: MemoryError",
    ),
}


@pytest.mark.parametrize("cause", ENDS)
def test_an_end_is_recovered_and_told(cause: str, server: Server, tmp_path: Path) -> None:
    end, words = ENDS[cause]
    folder = write_job(
        tmp_path / "work", "python train.py", {"train.py": SCRIPT.format(end=end)},
        checkpoint={"every": {"steps": 1}}, restart={"backoff": {"initial": 0, "max": 0}},
    )  # fmt: skip
    job = server.submit(folder)
    found = server.wait(job)
    assert (found["state"], found["restarts"], found["step"]) == ("SUCCEEDED", 1, 9)
    events = server.client().events(job).events
    (exited,) = [one["data"] for one in events if one["type"] == "ProcessExited"]
    assert exited["cause"] == cause
    then, now = decisions(events)
    assert now == then, "a timeline from a real end replays with the same decisions"

    told = server.cli("events", job).stdout
    assert words in told
    assert exited["advice"] in told
    assert "it cost" in told
    shown = server.cli("status", job).stdout
    assert "seen by:" in shown
    assert "failures 1 of 3" in shown

    (books,) = json.loads(server.cli("goodput", job, "-o", "json").stdout)["jobs"]
    (incident,) = books["incidents"]
    assert words in incident["cause"]
    assert "reported by wait" in incident["seen"]
    assert incident["charged_to"] == "failures"
    assert incident["restored_step"] is not None
    assert incident["lost_steps"] is not None
    assert incident["recovery_s"] > 0
    whole_s = sum(books["ledger"].values())
    assert books["ledger"]["restarting_s"] + books["ledger"]["restoring_s"] > 0
    assert whole_s == pytest.approx(_seconds(found), rel=0.01)
    assert "goodput" in server.cli("goodput", job).stdout


def _seconds(job: dict[str, str]) -> float:
    from orch.control.views import parse_time_us

    return (parse_time_us(job["ended"]) - parse_time_us(job["submitted"])) / 1e6


CODES = """
import os, sys, orch
run = orch.training(total=[0])
for _ in run.epochs(1):
    for value in run.batches([1, 2, 3, 4]):
        run.values["total"][0] += value
        run.step()
        if run.step_count == 2 and os.environ["ORCH_GENERATION"] == "000001.000001":
            os._exit(42)
        if run.step_count == 3:
            os._exit(7)
"""


def test_exit_codes_with_a_meaning(server: Server, tmp_path: Path) -> None:
    folder = write_job(
        tmp_path / "work", "python train.py", {"train.py": CODES}, checkpoint={"every": {"steps": 1}},
        restart={"on_exit_codes": {"stop": [7], "restart": [42]}},
    )  # fmt: skip
    job = server.submit(folder)
    found = server.wait(job, check=1)
    assert (found["restarts"], found["charges"]["failures"], found["exit_code"]) == (1, 0, 7)
    assert found["reason"].endswith("stopped, as `restart.on_exit_codes` says of this code")
    told = server.cli("events", job).stdout
    assert "exited with code 42 at step 2, which asks for a restart; restarting, charged to nothing" in told


NAN = """
import os, orch
run = orch.training(total=[0])
for _ in run.epochs(1):
    for value in run.batches(range(12)):
        run.values["total"][0] += 1
        run.step(loss=float("nan") if value == 5 else 1.0)
print("trained on", run.values["total"])
"""


def test_a_loss_that_is_no_number(server: Server, tmp_path: Path) -> None:
    every = {"checkpoint": {"every": {"steps": 1}}}
    stop = server.submit(write_job(tmp_path / "stop", "python train.py", {"train.py": NAN}, **every))
    found = server.wait(stop, check=1)
    assert found["reason"].startswith("bad numbers at step 6: loss is nan; step")
    assert "stopped, as `restart.on_nan` says" in found["reason"]
    assert found["charges"]["failures"] == 0

    back = write_job(
        tmp_path / "back", "python train.py", {"train.py": NAN}, restart={"on_nan": "rollback"}, **every
    )
    job = server.submit(back)
    found = server.wait(job)
    assert found["restarts"] == 1
    marked = [one for one in found["checkpoints"] if one["state"] == "quarantined"]
    assert all(one["step"] >= 6 and "poisoned" in one["reason"] for one in marked)
    assert "INEXACT" in found["flags"]
    (start,) = found["attempts"][0]["restarts"][1:]
    assert 1 <= start["restored_step"] <= 5
    assert found["step"] < 12
    assert "rolled back" in server.cli("status", job).stdout
