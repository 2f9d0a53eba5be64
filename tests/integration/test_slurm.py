"""deploy/slurm/orch.sbatch under a real Slurm of one node: a job that must go queues again by itself, and goes on."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from orch.control.raylocal import LOOPBACK
from support.server import Server, wait_for
from support.slurm import Slurm, missing

SCRIPT = Path(__file__).parents[2] / "deploy" / "slurm" / "orch.sbatch"
LIMIT_S = 300.0

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(bool(missing()), reason=missing() or "-"),
    pytest.mark.timeout(2 * LIMIT_S),
]


@pytest.fixture
def slurm() -> Iterator[Slurm]:
    with Slurm() as slurm:
        yield slurm


@pytest.fixture
def folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="orch-"))
    yield folder
    shutil.rmtree(folder)


def test_jobs_outlive_their_allocation(slurm: Slurm, folder: Path) -> None:
    home, gate = folder / "h", folder / "gate"
    os.mkfifo(gate)
    (folder / "job.yaml").write_text(
        f"name: batch\nrun: sh -c 'read word < {gate}; echo the word is $word'\nship: never\n"
        f"checkpoint: {{storage: {folder / 's'}}}\n"
    )
    program = folder / "orch"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m orch.cli.main "$@"\n')
    program.chmod(0o755)
    env = {
        "PATH": f"{folder}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "ORCH_HOME": str(home),
        "ORCH_NODE_FOLDER": str(folder / "n"),
        "ORCH_METADATA": "off",
        # A test's Ray listens on loopback alone; a cluster's cannot.
        "ORCH_HEAD_IP": LOOPBACK,
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    }
    output = folder / "out"
    options = ["--nodes=1", "--cpus-per-task=1", "--mem=0", "--time=60", f"--output={output}", "--parsable"]
    batch = slurm.run("sbatch", *options, str(SCRIPT), str(folder / "job.yaml"), env=env, cwd=folder).strip()

    def said(text: str) -> bool:
        state = slurm.scontrol("show", "job", batch)
        told = output.read_text() if output.exists() else ""
        assert "JobState=FAILED" not in state, told
        return text in told

    submitted = home / f"slurm-{batch}.jobs"
    wait_for("the job is submitted", lambda: submitted.exists() and submitted.read_text().strip(), LIMIT_S)
    job = submitted.read_text().strip()
    server = Server(home, env)
    wait_for("the job runs", lambda: server.job(job)["state"] == "RUNNING", LIMIT_S)
    slurm.run(
        "scancel", "--batch", "--signal=TERM", batch
    )  # what --signal=B:TERM@180 does before the time limit
    wait_for("it has queued again", lambda: said("queueing again"), LIMIT_S)
    wait_for("it begins again", lambda: said("start 2"), LIMIT_S)
    wait_for("the job goes on", lambda: _state(env, job) == "RUNNING", LIMIT_S)
    gate.write_text("go\n")
    wait_for(
        "the allocation ends", lambda: "JobState=COMPLETED" in slurm.scontrol("show", "job", batch), LIMIT_S
    )
    told = output.read_text()
    assert f"{job} ended with 0" in told, told
    assert "all jobs are over" in told
    assert told.count("starting on here") == 2
    assert not submitted.exists()
    assert (home / "slurm-ray-token").stat().st_mode & 0o777 == 0o600
    logs = sorted((home / "jobs" / job).glob("attempt-*/rank-0.log"))
    assert "the word is go" in logs[-1].read_text()


def _state(env: dict[str, str], job: str) -> str:
    """As a person sees it who types `orch status`; empty while nothing answers."""
    done = subprocess.run(
        [sys.executable, "-m", "orch.cli.main", "status", job],
        env={**os.environ, **env}, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    lines = [line.split() for line in done.stdout.splitlines() if line.startswith("State")]
    return lines[0][1] if lines else ""
