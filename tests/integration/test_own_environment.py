"""A job in a Python environment of its own, on a real server: built, used by a standby too, and refused in time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from support.jobs import Gate, log_of, wait_output, write_job
from support.server import Server, wait_for
from support.wheels import make_wheel, offline

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("own_jobs")]

SCRIPT = """
import sys

import orch
import orch_tiny

run = orch.training(total=0)
print("runs in", sys.prefix, "from", run.step_count, flush=True)
while run.step_count < 10:
    run.values["total"] += orch_tiny.VALUE
    run.step(total=run.values["total"])
    if run.step_count == 5:
        run.save()
    if run.step_count == 6 and not run.restored_step:
        print("waiting", flush=True)
        open(sys.argv[1]).readline()
print("total", run.values["total"], flush=True)
"""


def _standby(server: Server, job: str) -> dict[str, Any]:
    found: dict[str, Any] = server.job(job)["usage"].get("standby") or {}
    return found


def test_processes_and_standby_run_in_the_jobs_own_environment(server: Server, tmp_path: Path) -> None:
    packages = tmp_path / "packages"
    make_wheel(packages, "orch_tiny", "1.0", {"orch_tiny.py": "VALUE = 2\n"})
    gate = Gate(tmp_path)
    folder = write_job(
        tmp_path / "work",
        f"python train.py {gate.path}",
        {"train.py": SCRIPT, "requirements.txt": "orch-tiny==1.0\n"},
        python={"requirements": "requirements.txt"},
        env=offline(packages),
    )
    job = server.submit(folder)
    wait_output(server, job, "waiting")
    wait_for("a standby is ready", lambda: _standby(server, job).get("state") == "ready")
    assert _standby(server, job)["modules"] > 0, "it has imported what the environment has"
    server.kill_training(job)
    server.wait(job)
    log = log_of(server, job)
    prefixes = {line.split()[2] for line in log.splitlines() if line.startswith("runs in ")}
    assert len(prefixes) == 1
    assert "/environments/" in prefixes.pop()
    assert "total 20" in log
    recovered = [event["data"] for event in server.events(job) if event["type"] == "Recovered"]
    assert recovered[-1]["standby"]


def test_requirements_that_cannot_be_had_fail_the_job_with_the_tools_words(
    server: Server, tmp_path: Path
) -> None:
    packages = tmp_path / "packages"
    packages.mkdir()
    job = server.submit(
        write_job(
            tmp_path / "work",
            "true",
            {"requirements.txt": "orch-nowhere==1\n"},
            python={"requirements": "requirements.txt"},
            env=offline(packages),
        )
    )
    found = server.wait(job, check=1)
    assert "cannot be built" in found["reason"]
    assert "orch-nowhere" in found["error"]
    assert "orch-nowhere" in server.cli("status", job).stdout
