"""`orch resume`: failed, succeeded and running jobs go on, with other code, other values, from an older checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from support.jobs import Gate, log_of, wait_output, write_job
from support.server import Server

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("own_jobs")]

SCRIPT = """
import os
import numpy
import orch

weights = numpy.zeros(4)
run = orch.training(weights=weights, rates=[])
print("began at", run.step_count, run.values["rates"], flush=True)
while run.step_count < int(os.environ["STEPS"]):
    weights += 1
    run.values["rates"].append(os.environ["RATE"])
    run.step(loss=1 / (1 + run.step_count))
    run.save()
    if str(run.step_count) == os.environ.get("FAILS_AT"):
        raise SystemExit(3)
    if str(run.step_count) == os.environ.get("WAITS_AT"):
        print("waits", flush=True)
        open(os.environ["GATE"]).readline()
print("ends with", run.values["rates"], flush=True)
"""
KEEPS_ALL = {"every": {"steps": 1000}, "keep": {"last": 50}}


def submit(server: Server, folder: Path, **env: str) -> str:
    files = {"train.py": SCRIPT}
    restart = {"max_failures": 0, "standby": False}
    return server.submit(
        write_job(
            folder, "python train.py", files, env={"RATE": "a", **env}, checkpoint=KEEPS_ALL, restart=restart
        )
    )


def test_a_failed_job_goes_on_with_new_code_and_other_values(server: Server, tmp_path: Path) -> None:
    job = submit(server, tmp_path / "work", STEPS="6", FAILS_AT="4")
    assert server.wait(job, check=1)["exit_code"] == 3

    refused = server.cli("resume", job, "--set", "resources.workers=2", "--set", "env.RATE=b", check=2)
    assert "--set resources.workers: it cannot change in a job that exists" in refused.stderr
    assert server.job(job)["resumes"] == 0

    train = tmp_path / "work" / "train.py"
    train.write_text(SCRIPT.replace("raise SystemExit(3)", "print('put right', flush=True)"))
    said = server.cli("resume", job, "--workdir", str(train.parent), "--set", "env.RATE=b")
    assert said.stdout == f"{job} goes on from its newest checkpoint, with version 2 of its code\n"
    done = server.wait(job)
    assert done["attempt"] == 2
    assert done["budgets"]["max_failures"] == 0
    log = log_of(server, job)
    assert "began at 4 ['a', 'a', 'a', 'a']" in log, "nothing of what was saved is done again"
    assert "ends with ['a', 'a', 'a', 'a', 'b', 'b']" in log

    shown = json.loads(server.cli("checkpoints", "show", job, "-o", "json").stdout)["checkpoint"]
    assert shown["code_version"] == 2
    older = json.loads(server.cli("checkpoints", "show", f"{job}@2", "-o", "json").stdout)["checkpoint"]
    assert older["code_version"] == 1
    changes = server.cli("code", "diff", job, "1", "2", check=1).stdout
    assert "-        raise SystemExit(3)" in changes
    assert "+        print('put right', flush=True)" in changes
    versions = json.loads(server.cli("code", "list", job, "-o", "json").stdout)["versions"]
    assert [(one["version"], one["attempt"], len(one["checkpoints"])) for one in versions] == [
        (1, 1, 4),
        (2, 2, 2),
    ]


def test_a_running_job_goes_on_from_an_older_checkpoint(server: Server, tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    job = submit(server, tmp_path / "work", STEPS="8", WAITS_AT="6", GATE=str(gate.path))
    wait_output(server, job, "waits")
    refused = server.cli("resume", job, check=2)
    assert f"{job} runs already: there is nothing to resume" in refused.stderr

    server.cli(
        "resume", job, "--at", "3", "--set", "env.RATE=c", "--set", "env.WAITS_AT=none", "--grace", "1s"
    )
    done = server.wait(job)
    assert "ends with ['a', 'a', 'a', 'c', 'c', 'c', 'c', 'c']" in log_of(server, job)
    assert done["charges"]["preemptions"] == 0, "it left on request"
    (asked,) = [one for one in server.events(job) if one["type"] == "ResumeRequested"]
    assert asked["decision"].endswith("resumed on request at step 3, changed: env.RATE, env.WAITS_AT")

    # A second branch, from what the first one left behind.
    listed = json.loads(server.cli("checkpoints", "list", job, "-o", "json").stdout)["checkpoints"]
    left = [one["step"] for one in listed if not one["on_chain"]]
    assert set(left) <= {4, 5, 6}
    again = server.cli("resume", job, "--at", "99", check=2)
    assert "--at 99" in again.stderr
    server.cli("resume", job, "--at", "5", "--set", "env.RATE=d")
    server.wait(job)
    assert "ends with ['a', 'a', 'a', 'c', 'c', 'd', 'd', 'd']" in log_of(server, job)
    assert server.job(job)["last_checkpoint"]["step"] == 8


NEW = """
import numpy
import orch

weights, more = numpy.zeros(4), numpy.full(2, 7.0)
run = orch.training(weights=weights, more=more)
print("begins with", weights.tolist(), more.tolist(), "at", run.step_count, flush=True)
run.step(loss=1.0)
"""


def test_a_new_job_begins_with_the_weights_of_another(server: Server, tmp_path: Path) -> None:
    old = submit(server, tmp_path / "old", STEPS="3")
    server.wait(old)
    folder = write_job(tmp_path / "new", "python train.py", {"train.py": NEW}, restart={"standby": False})
    new = server.submit(folder, "--from", f"{old}@2", "--only", "weights")
    done = server.wait(new)
    assert "begins with [2.0, 2.0, 2.0, 2.0] [7.0, 7.0] at 0" in log_of(server, new)
    (told,) = [one["data"] for one in server.events(new) if one["type"] == "WarmStarted"]
    assert (told["source"], told["loaded"]) == (f"{old}@2", 1)
    assert f"began with {old}@2: 1 tensors and arguments loaded, all that there was" in [
        note["text"] for note in done["notes"]
    ]
    assert done["attempts"][0]["restarts"][0]["restored_step"] is None, "it has restored nothing of its own"


def test_a_curve_begins_once_however_often_its_job_was_killed(server: Server, tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    env = {"STEPS": "6", "WAITS_AT": "3", "GATE": str(gate.path), "RATE": "a"}
    files, checkpoint = {"train.py": SCRIPT}, {"every": {"steps": 1000}}
    job = server.submit(
        write_job(tmp_path / "work", "python train.py", files, env=env, checkpoint=checkpoint)
    )
    wait_output(server, job, "waits")
    server.kill_training(job)
    assert server.wait(job)["restarts"] == 1
    storage = server.home / "storage" / job / "tensorboard"
    found = EventAccumulator(str(storage)).Reload().Scalars("loss")
    steps = [one.step for one in found]
    assert {1, 4} <= set(steps), "the first of each process; others as often as metrics are told"
    assert steps == sorted(set(steps))
    assert all(one.value == pytest.approx(1 / (one.step)) for one in found)


EVAL = """
import numpy
import orch

weights = numpy.zeros(4)
run = orch.training(weights=weights)
print("evaluates", run.step_count, flush=True)
run.step(error=abs(weights.mean() - 2.0))
"""


def test_an_evaluation_begins_with_each_checkpoint_and_the_best_is_named(
    server: Server, tmp_path: Path
) -> None:
    job = submit(server, tmp_path / "work", STEPS="3")
    server.wait(job)
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval" / "eval.py").write_text(EVAL)
    plot = tmp_path / "curve.svg"
    options = ("--run", "python eval.py", "--workdir", str(tmp_path / "eval"), "--plot", str(plot))
    found = json.loads(server.cli("evaluate", job, *options, "--steps", "2,3", "-o", "json").stdout)
    assert (found["metric"], found["best"]) == ("error", 2)
    assert [(one["step"], one["metrics"]) for one in found["evaluations"]] == [
        (2, {"error": 0.0}),
        (3, {"error": 1.0}),
    ]
    assert "evaluates 2" in log_of(server, found["evaluations"][0]["job"])
    assert plot.read_text().count("<circle") == 2
