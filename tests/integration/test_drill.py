"""`orch drill` on its example: it finds the scheduler that was forgotten, and passes the script that is right."""

from __future__ import annotations

import json
from pathlib import Path

from orch_workers.checkpoint import Catalog, open_storage
from support.jobs import write_job
from support.server import Server

JOB = str(Path(__file__).parents[2] / "examples" / "drill" / "job.yaml")
FEW = ("--steps", "40", "--kills", "1")


def test_a_job_that_resumes_exactly(server: Server) -> None:
    done = server.cli("drill", JOB, *FEW, "--set", "env.FORGET='0'", "-o", "json")
    found = json.loads(done.stdout)["drill"]
    assert found["equal"]
    assert found["reason"] is None
    assert [kill["restored_from"] for kill in found["kills"]] == ["memory"]
    assert found["kills"][0]["restored_step"] > 0
    assert found["tensors_equal"] > 4
    killed = server.client().job(found["jobs"]["killed"])
    assert killed["step"] == 40
    assert killed["restarts"] == 1
    storage = open_storage(str(server.home / "storage"))
    for job in found["jobs"].values():
        assert not Catalog(storage, job).committed(), "what an equal drill saved is removed"


def test_a_forgotten_scheduler_is_found(server: Server) -> None:
    done = server.cli("drill", JOB, *FEW, check=1)
    assert "NOT equal" in done.stdout
    assert "learning rate" in done.stdout
    assert "scheduler" in done.stdout
    assert "orch checkpoints diff" in done.stdout


def test_what_cannot_be_drilled(server: Server, tmp_path: Path) -> None:
    plain = write_job(tmp_path, "python -c 'print(1)'")
    done = server.cli("drill", str(plain / "job.yaml"), check=2)
    assert "nothing keeps the state" in done.stderr
    assert "--at" in server.cli("drill", JOB, "--at", "60", check=2).stderr
    assert "there is no job" in server.cli("drill", "nobody-x7k2m", check=4).stderr.lower()
