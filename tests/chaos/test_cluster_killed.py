"""The whole cluster dies, and `orch server start` on the same home resumes every unfinished job."""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from orch.control.raylocal import ray_processes
from support.leftovers import assert_nothing_left
from support.recovery import STEPS, Victim, assert_recovered, kill
from support.server import Server, wait_for

pytestmark = pytest.mark.chaos


@pytest.fixture
def own_server() -> Iterator[Server]:
    home = Path(tempfile.mkdtemp(prefix="orch-"))
    server = Server(home)
    try:
        server.start()
        yield server
    finally:
        server.put_away()
    shutil.rmtree(home)


def test_all_of_ray_killed_at_once(own_server: Server, rng: random.Random) -> None:
    victim = Victim(own_server)
    victim.wait_event("CheckpointCommitted", lambda data: data["step"] > 1)
    victim.wait_step(rng.randrange(STEPS // 6, STEPS // 2))
    training = victim.events("ProcessStarted")[-1]["pid"]
    for process in ray_processes(own_server.home):
        kill(process.pid)
    wait_for("the training process is gone with its agent", lambda: kill(training) is None)
    own_server.start()
    detail = victim.finish()
    assert_recovered(detail, kills=1)
    own_server.stop()
    assert_nothing_left(own_server.home, [victim.id])


def test_a_planned_stop_loses_no_step(own_server: Server, rng: random.Random) -> None:
    """`orch server stop` has every worker save what it holds; the next start goes on from there."""
    victim = Victim(own_server)
    victim.wait_step(rng.randrange(STEPS // 6, STEPS // 2))
    own_server.stop()
    own_server.start()
    detail = victim.finish()
    assert_recovered(detail, kills=1)
    assert [restart["lost_steps"] for attempt in detail["attempts"] for restart in attempt["restarts"]][
        -1
    ] == 0
