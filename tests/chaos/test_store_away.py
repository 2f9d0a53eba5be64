"""The store's disk takes nothing more, or another program holds its database for seconds: training goes on."""

from __future__ import annotations

import random
import resource
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pytest

from orch.api.actor import LOG_NAME
from orch.control.home import Home
from support.journals import in_journal, journalled
from support.recovery import STEPS, Held, Victim, assert_recovered, starts
from support.server import Server, wait_for
from support.transitions import assert_nothing_twice

pytestmark = pytest.mark.chaos


@contextmanager
def no_room(server: Server) -> Iterator[None]:
    """The real controller's process may write no file beyond what its log needs: its database is full."""
    record = Home(server.home).read_server()
    assert record is not None
    controller = psutil.Process(record.pid)
    before = controller.rlimit(psutil.RLIMIT_FSIZE)
    limit_bytes = (server.home / LOG_NAME).stat().st_size + (64 << 10)
    controller.rlimit(psutil.RLIMIT_FSIZE, (limit_bytes, resource.RLIM_INFINITY))
    try:
        yield
    finally:
        controller.rlimit(psutil.RLIMIT_FSIZE, before)


def test_no_room_for_the_store(server: Server, undisturbed: bytes, rng: random.Random) -> None:
    """The leader recovers from a crash meanwhile; what it did is told later, once."""
    victim = Victim(server)
    victim.wait_event("CheckpointCommitted", lambda data: data["step"] > 1)
    victim.wait_step(rng.randrange(STEPS // 6, STEPS // 3))
    with no_room(server):
        told = wait_for("the server says so", lambda: server.client().server()["store_trouble"])
        assert "disk" in told
        recovered = journalled(server, victim, "Recovered")
        assert victim.kill_training()
        wait_for("the leader has recovered it", lambda: journalled(server, victim, "Recovered") > recovered)
        assert len(victim.events("Recovered")) == recovered, "the store took it all the same: no test"
    detail = victim.finish()
    assert_recovered(detail, kills=1)
    assert len(starts(detail)) == 2
    events = server.client().events(victim.id).events
    assert_nothing_twice(events)
    assert Counter(event["type"] for event in events)["RestartDecided"] == 1
    assert victim.final_bytes() == undisturbed
    assert server.client().server()["store_trouble"] is None
    assert "the store can be written again" in (server.home / LOG_NAME).read_text()
    victim.assert_nothing_left()


def test_another_program_holds_the_database(server: Server, undisturbed: bytes, rng: random.Random) -> None:
    """From some step until all of training is done; what happened meanwhile is told later, once."""
    victim = Held(server, at=rng.randrange(STEPS // 6, STEPS // 3))
    victim.wait_event("CheckpointCommitted")
    other = sqlite3.connect(server.home / "orch.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    victim.let_go()

    def all_saved() -> bool:
        return any(f'"step":{STEPS},' in line for line in in_journal(server, victim, "CheckpointCommitted"))

    wait_for("training goes on", all_saved)
    known = [data["step"] for data in victim.events("CheckpointCommitted")]
    other.execute("ROLLBACK")
    other.close()
    assert max(known) < STEPS // 3, "the store took it all the same: no test"
    detail = victim.finish()
    assert len(starts(detail)) == 1
    assert_nothing_twice(server.client().events(victim.id).events)
    assert victim.events("CheckpointCommitted")[-1]["step"] == STEPS
    assert victim.final_bytes() == undisturbed
    victim.assert_nothing_left()
