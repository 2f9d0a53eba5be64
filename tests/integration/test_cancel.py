"""`orch cancel`: over only when nothing is left, whatever the command is made of."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.jobs import Gate, log_of, wait_output, wait_state, write_job
from support.leftovers import of_jobs
from support.processes import TREE, TREE_SIZE, Fifo, is_alive
from support.recovery import placement_groups
from support.server import Server

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("own_jobs")]


ENDED: list[str] = []
"""Jobs whose placement groups must be gone as well: Ray is asked once for all of them."""


def assert_gone(server: Server, job: str) -> None:
    """At once: cancel returns when it has been seen, not when it was asked for."""
    assert not of_jobs(server.home, [job])
    ENDED.append(job)


@pytest.fixture(scope="module", autouse=True)
def _no_placement_group_is_left(server: Server) -> Iterator[None]:
    yield
    assert not placement_groups(server, *ENDED)


def test_grace_is_given(server: Server, stubborn: str) -> None:
    """Who ignores SIGTERM is left alone until the grace period is over; test_the_grace_period has the end."""
    found = wait_state(server, stubborn, "STOPPING")
    assert found["reason"] == "cancelled on request"
    assert of_jobs(server.home, [stubborn])


@pytest.mark.parametrize("now", [[], ["--now"]])
def test_a_tree_of_every_kind(now: list[str], server: Server, tmp_path: Path) -> None:
    """A child, a double fork, sessions of their own, a daemon; and one of them ignores SIGTERM."""
    fifo = Fifo(tmp_path)
    folder = write_job(
        tmp_path / "work", "python tree.py stay", {"tree.py": TREE}, env={"FIFO": str(fifo.path)}
    )
    job = server.submit(folder)
    pids = fifo.pids(TREE_SIZE)
    assert all(is_alive(pid) for pid in pids)
    said = server.cli("cancel", job, *now)
    assert not [pid for pid in pids if is_alive(pid)]
    assert said.stdout.startswith(f"{job} CANCELLED after")
    assert_gone(server, job)
    assert server.cli("wait", job, check=3).returncode == 3


def test_sigterm_comes_first(server: Server, tmp_path: Path) -> None:
    """The command may tidy up; what it writes then is in the log."""
    run = "trap 'echo tidied up; exit 0' TERM; echo ready; sleep 1000 & wait"
    job = server.submit(write_job(tmp_path / "work", run, outputs=["*"]))
    wait_output(server, job, "ready")
    document = json.loads(server.cli("cancel", job, "-o", "json").stdout)
    assert document["jobs"][0]["state"] == "CANCELLED", "although it left with code 0"
    assert log_of(server, job) == "ready\ntidied up\n"
    assert_gone(server, job)


def test_now_is_without_grace(server: Server, tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    job = server.submit(
        write_job(tmp_path / "work", f"trap 'echo tidied up; exit 0' TERM; echo ready; {gate.wait}")
    )
    wait_output(server, job, "ready")
    server.cli("cancel", job, "--now")
    assert log_of(server, job) == "ready\n"
    assert_gone(server, job)


def test_followers_end_with_its_code(server: Server, tmp_path: Path) -> None:
    from support.jobs import Following

    gate = Gate(tmp_path)
    folder = write_job(tmp_path / "work", f"echo ready; {gate.wait}")
    follower = Following(server, "submit", str(folder / "job.yaml"), "--follow", "--quiet")
    job = follower.line()
    assert follower.line() == "ready"
    waiter = Following(server, "wait", job)
    server.cli("cancel", job, "--now")
    assert follower.end()[0] == 3
    assert waiter.end()[0] == 3


def test_before_anything_has_started(server: Server, tmp_path: Path) -> None:
    """Right after submit, wherever it is by then."""
    job = server.submit(write_job(tmp_path / "work", "echo never said; sleep 1000"))
    server.cli("cancel", job, "--now")
    assert server.job(job)["state"] == "CANCELLED"
    assert_gone(server, job)


def test_what_is_over_stays_as_it_ended(server: Server, tmp_path: Path) -> None:
    job = server.submit(write_job(tmp_path / "work", "echo done"))
    server.wait(job)
    server.cli("cancel", job)
    assert server.job(job)["state"] == "SUCCEEDED"
    cancelled = server.submit(write_job(tmp_path / "other", "sleep 1000"))
    for _ in range(2):
        server.cli("cancel", cancelled, "--now")
    assert server.job(cancelled)["state"] == "CANCELLED"


TRAINS = """
import itertools, orch
run = orch.training(counter=[0])
for _ in itertools.count():
    run.values["counter"][0] += 1
    run.step()
    if run.step_count == 5:
        print("five", flush=True)
"""


def test_training_saves_before_it_leaves(server: Server, tmp_path: Path) -> None:
    job = server.submit(write_job(tmp_path / "work", "python train.py", {"train.py": TRAINS}))
    wait_output(server, job, "five")
    server.cli("cancel", job)
    found = server.job(job)
    assert found["state"] == "CANCELLED"
    assert found["checkpoints"][0]["step"] == found["step"] >= 5, "the last step it made"
    assert_gone(server, job)
