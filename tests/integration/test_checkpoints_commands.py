"""`orch checkpoints …` as its user has it: on a job that ran, by its id and by its URL, on disk and on S3."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from orch_workers.checkpoint import Checkpointer
from support.jobs import Gate, wait_output, write_job
from support.seaweed import SeaweedFS
from support.server import Server

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("own_jobs")]

SCRIPT = """
import sys
import numpy
import orch

weights = numpy.zeros(1000, numpy.float32)
run = orch.training(weights=weights, history=[])
while run.step_count < 6:
    weights += 1
    run.values["history"].append(run.step_count)
    run.step(loss=1 / (1 + run.step_count))
    if run.step_count == 4 and len(sys.argv) > 1:
        run.save()
        print("waiting", flush=True)
        open(sys.argv[1]).readline()
"""
KEEP = {"every": {"steps": 2}, "keep": {"last": 2}}


def verbs(server: Server, *arguments: str, check: int | None = 0) -> str:
    return server.cli("checkpoints", *arguments, check=check).stdout


def test_a_job_by_its_id_while_it_runs_and_after(server: Server, tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    run = f"python train.py {gate.path}"
    job = server.submit(write_job(tmp_path / "work", run, {"train.py": SCRIPT}, checkpoint=KEEP))
    wait_output(server, job, "waiting")
    assert server.client().job(job)["ended"] is None
    memory = [one for one in listed(server, job) if "memory" in one["places"]]
    assert 4 in [one["step"] for one in memory], "the newest snapshot lies in this machine's memory"
    gate.open()
    server.wait(job)

    newest, older = listed(server, job)
    assert [newest["step"], older["step"]] == [6, 4]
    assert newest["newest"]
    assert "last 2" in newest["kept"]
    assert newest["blocked_s"] > 0
    assert newest["duration_s"] > 0
    assert newest["metrics"] == {"loss": 1 / 6}
    assert "every digest matches" in verbs(server, "verify", job, "--deep", "--all")

    found = json.loads(verbs(server, "diff", f"{job}@4", f"{job}@6", "-o", "json", check=1))
    [change] = [one for one in found["tensors"] if one["name"] == "weights"]
    assert (change["differing"], change["max_abs"], change["relative_norm"]) == (1000, 2.0, 0.5)
    assert {"path": "history.5", "before": None, "after": "5"} in found["tree"]

    verbs(
        server,
        "export",
        job,
        "--to",
        "safetensors",
        "--only",
        "weights",
        "--into",
        str(tmp_path / "w.safetensors"),
    )
    assert (tmp_path / "w.safetensors").stat().st_size > 4000
    verbs(server, "rm", f"{job}@6", "--yes")  # the job is over
    assert [one["step"] for one in listed(server, job)] == [4]


def listed(server: Server, job: str) -> list[dict]:
    return json.loads(verbs(server, "list", job, "-o", "json"))["checkpoints"]


def test_a_pinned_one_outlives_the_rules_of_a_running_job(server: Server, tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    run = f"python train.py {gate.path}"
    keep = {"every": {"steps": 1}, "keep": {"last": 1}}
    job = server.submit(write_job(tmp_path / "work", run, {"train.py": SCRIPT}, checkpoint=keep))
    wait_output(server, job, "waiting")
    wait_committed(server, job, 4)
    verbs(server, "pin", f"{job}@4", "--note", "before the end")
    gate.open()
    server.wait(job)
    assert [(one["step"], one["pinned"]) for one in listed(server, job)] == [(6, None), (4, "before the end")]


def wait_committed(server: Server, job: str, step: int) -> None:
    from support.server import wait_for

    wait_for(f"step {step} of {job} is in storage", lambda: step in steps_in_storage(server, job))


def steps_in_storage(server: Server, job: str) -> list[int]:
    return [int(path.stem) for path in (server.home / "storage" / job / "manifests").glob("*/*.json")]


def test_a_job_on_s3_with_the_credentials_of_whoever_asks(
    server: Server, seaweed: SeaweedFS, tmp_path: Path
) -> None:
    storage = {"url": seaweed.url("commands"), "options": seaweed.options}
    secrets = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"]
    owner = Server(server.home, seaweed.env)
    folder = write_job(
        tmp_path / "work",
        "python train.py",
        {"train.py": SCRIPT},
        secrets=secrets,
        checkpoint={**KEEP, "storage": storage},
    )
    job = owner.submit(folder)
    owner.wait(job)
    stranger = server.cli("checkpoints", "list", job, check=1)
    assert "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY are not set here" in stranger.stderr
    url = f"{storage['url']}/{job}"
    assert "every digest matches" in verbs(owner, "verify", url, "--deep", "--all")

    # To a disk, and back to another prefix; each is restored by itself.
    verbs(owner, "cp", f"{job}@6", str(tmp_path / "archive"))
    verbs(owner, "cp", f"{tmp_path}/archive/{job}@6", seaweed.url("copied"))
    assert "equal bit for bit" in verbs(owner, "diff", url, f"{seaweed.url('copied')}/{job}")
    copied = Checkpointer(f"{seaweed.url('copied')}/{job}", env=seaweed.env).restore()
    assert copied is not None
    assert copied.step == 6
    np.testing.assert_array_equal(copied.values["weights"], np.full(1000, 6, np.float32))


def test_the_library_on_s3(seaweed: SeaweedFS) -> None:
    """Two processes' worth of it, fenced by the storage itself."""
    url = f"{seaweed.url('library')}/digits-{os.getpid()}"
    with Checkpointer(url, env=seaweed.env, background=True, keep=2) as checkpoints:
        for step in range(1, 5):
            checkpoints.save(step, {"weights": np.full(100_000, step), "step": step})
    with Checkpointer(url, env=seaweed.env) as checkpoints:
        found = checkpoints.restore()
        assert found is not None
        assert found.values["step"] == 4
        assert [one.step for one in checkpoints.list()] == [4, 3]
        assert all(one.is_good for one in checkpoints.verify())
