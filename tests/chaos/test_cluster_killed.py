"""The whole cluster dies, and `orch server start` on the same home resumes every unfinished job."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from orch.control.raylocal import ray_processes
from support.accounts import keep_timeline
from support.leftovers import assert_nothing_left
from support.recovery import STEPS, Victim, assert_recovered, kill
from support.server import Server, own_server, wait_for

pytestmark = pytest.mark.chaos


@pytest.fixture
def alone() -> Iterator[Server]:
    with own_server() as server:
        yield server


def test_all_of_ray_killed_at_once(alone: Server, rng: random.Random) -> None:
    victim = Victim(alone)
    victim.wait_event("CheckpointCommitted", lambda data: data["step"] > 1)
    victim.wait_step(rng.randrange(STEPS // 6, STEPS // 2))
    training = victim.events("ProcessStarted")[-1]["pid"]
    for process in ray_processes(alone.home):
        kill(process.pid)
    wait_for("the training process is gone with its agent", lambda: kill(training) is None)
    alone.start()
    detail = victim.finish()
    assert_recovered(detail, kills=1)
    keep_timeline(
        alone, victim.id, "cluster_lost", "every process of Ray killed at once, and the server started again."
    )
    alone.stop()
    assert_nothing_left(alone.home, [victim.id])


def test_a_planned_stop_loses_no_step(alone: Server, rng: random.Random) -> None:
    """`orch server stop` has every worker save what it holds; the next start goes on from there."""
    victim = Victim(alone)
    victim.wait_step(rng.randrange(STEPS // 6, STEPS // 2))
    alone.stop()
    alone.start()
    detail = victim.finish()
    assert_recovered(detail, kills=1)
    assert [restart["lost_steps"] for attempt in detail["attempts"] for restart in attempt["restarts"]][
        -1
    ] == 0
