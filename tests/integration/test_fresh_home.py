"""A home where nothing runs yet, and a server that is stopped and started in the middle of a training."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from orch.control.raylocal import ray_processes
from support.jobs import Following, log_of, wait_output, wait_state, write_job
from support.leftovers import assert_nothing_left
from support.server import Server

pytestmark = pytest.mark.integration

TRAIN = '''
import os, random
import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
import orch

EPOCHS, WEIGHTY = 2, torch.ones(448, 448)
STOPPED_HERE = 40 if "STOPPED" in os.environ else None


class Augmented(Dataset):
    """Random in every framework, in the loader's worker processes."""

    def __len__(self):
        return 120

    def __getitem__(self, index):
        x = torch.full((8,), index / 120.0) + 0.1 * torch.randn(8)
        x = x * random.uniform(0.9, 1.1) + float(np.random.normal(0, 0.01))
        return x, x.sum().reshape(1)


def main():
    torch.manual_seed(3)
    random.seed(4)
    np.random.seed(5)
    torch.set_num_threads(1)
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=EPOCHS * 30)
    loader = DataLoader(Augmented(), batch_size=4, shuffle=True, num_workers=2)
    run = orch.training(model=model, optimizer=optimizer, scheduler=scheduler, data=loader)
    for _ in run.epochs(EPOCHS):
        for x, y in run.batches(loader):
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(x), y)
            loss.backward()
            optimizer.step()
            scheduler.step()
            while run.step_count == STOPPED_HERE and run.restored_step is None and not run.should_stop:
                torch.mm(WEIGHTY, WEIGHTY)  # a long step
            run.step(loss=loss)
            if run.step_count == 40:
                print("step 40", flush=True)
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, "final.pt")
    print("exact:", run.exact, *run.inexact_reasons)


if __name__ == "__main__":
    main()
'''
STEPS = 60


@pytest.fixture(scope="module")
def fresh() -> Iterator[Server]:
    home = Path(tempfile.mkdtemp(prefix="orch-"))
    home.rmdir()
    server = Server(home)
    jobs: list[str] = []
    try:
        yield server
        if (home / "server.json").exists():
            jobs = [job["id"] for job in json.loads(server.cli("status", "-o", "json").stdout)["jobs"]]
    finally:
        server.stop()
    assert_nothing_left(home, jobs)
    shutil.rmtree(home)


@pytest.fixture(scope="module")
def two(fresh: Server, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Two submits at once, where no server is; the jobs that came of them."""
    folder = write_job(tmp_path_factory.mktemp("two"), "echo here $ORCH_JOB_ID")
    submits = [Following(fresh, "submit", str(folder / "job.yaml"), "--quiet") for _ in range(2)]
    jobs = [submit.line() for submit in submits]
    ends = [submit.end() for submit in submits]
    assert [code for code, _ in ends] == [0, 0], ends
    return jobs[0], jobs[1]


def test_without_a_server(tmp_path: Path) -> None:
    """Exit code 5 and what to do; nothing is made, and only submit starts anything."""
    nobody = Server(tmp_path / "home")
    for verb in (
        ["status"], ["status", "a-12345"], ["logs", "a-12345"], ["events", "a-12345"], ["cancel", "a-12345"],
        ["wait", "a-12345"], ["fetch", "a-12345"], ["server", "status"], ["status", "--watch"],
    ):  # fmt: skip
        done = nobody.cli(*verb, check=5)
        assert done.stdout == ""
        assert "no server runs" in done.stderr
        assert "orch server start" in done.stderr
    assert not nobody.home.exists()
    assert "the server is stopped" in nobody.cli("server", "stop").stdout


def test_two_submits_start_one_server(fresh: Server, two: tuple[str, str]) -> None:
    assert len(set(two)) == 2
    for job in two:
        fresh.wait(job)
        assert log_of(fresh, job) == f"here {job}\n"
    commands = [" ".join(process.cmdline()) for process in ray_processes(fresh.home)]
    for part in ("gcs_server", "raylet/raylet", "ControllerActor"):
        assert len([command for command in commands if part in command.split(" --")[0]]) == 1, part


def test_starting_what_runs_is_harmless(fresh: Server, two: tuple[str, str]) -> None:
    before = (fresh.home / "server.json").read_text()
    assert "the server answers at" in fresh.cli("server", "start").stdout
    assert (fresh.home / "server.json").read_text() == before


def test_stopped_and_started_in_the_middle(fresh: Server, two: tuple[str, str], tmp_path: Path) -> None:
    """The same bytes as undisturbed, loader workers and random augmentation included; the stop loses no step."""
    folder = write_job(
        tmp_path / "work", "python train.py", {"train.py": TRAIN}, name="pytorch",
        outputs=["final.pt"], checkpoint={"every": {"steps": 25}}, resources={"cpus": 0.5},
    )  # fmt: skip
    undisturbed = fresh.submit(folder)
    job = fresh.submit(folder, "--set", "env.STOPPED=yes")
    follower = Following(fresh, "logs", "-f", job)
    fresh.wait(undisturbed)
    wait_output(fresh, job, "step 40")
    fresh.stop()
    assert not ray_processes(fresh.home)
    assert fresh.cli("status", job, check=5).stdout == ""
    fresh.start()
    wait_state(fresh, job, "STARTING", "RUNNING", "SUCCEEDED")
    found = fresh.wait(job)
    starts = [start for attempt in found["attempts"] for start in attempt["restarts"]]
    assert found["step"] == STEPS
    assert len(starts) == 2
    assert starts[1]["restored_step"] >= 40
    assert starts[1]["lost_steps"] == 0, "a planned stop saves what the jobs hold"
    assert found["charges"]["failures"] == 0
    for one in (undisturbed, job):
        fresh.cli("fetch", one, "--to", str(tmp_path / one))
        assert log_of(fresh, one).splitlines()[-1] == "exact: True"
    digests = {
        hashlib.sha256((tmp_path / one / "final.pt").read_bytes()).hexdigest() for one in (undisturbed, job)
    }
    assert len(digests) == 1
    code, said = follower.end()
    assert code == 0, said
    assert "waiting for it" in said, "who follows is told of the gap, and goes on following"
