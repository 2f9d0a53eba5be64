"""Two ranks with DDP in one job, and real kills of every part of them: the final bytes stay the same."""

from __future__ import annotations

import pytest

from support.gang_jobs import STEPS, GangVictim
from support.recovery import assert_chain_kept, assert_recovered, starts
from support.server import Server

pytestmark = pytest.mark.chaos


@pytest.fixture(scope="module")
def undisturbed(server: Server) -> bytes:
    victim = GangVictim(server)
    detail = victim.finish()
    assert len(starts(detail)) == 1
    assert {event["rank"] for event in victim.events("ProcessStarted")} == {0, 1}
    assert_chain_kept(victim, STEPS)
    victim.assert_nothing_left()
    return victim.final_bytes()


@pytest.mark.parametrize("rank", [0, 1])
def test_a_training_process_killed(server: Server, undisturbed: bytes, rank: int) -> None:
    victim = GangVictim(server)
    victim.wait_event("CheckpointCommitted", lambda data: data["step"] > 20)
    assert victim.kill_process(rank)
    detail = victim.finish()
    assert_recovered(detail, kills=1)
    assert detail["attempt"] == 1, "restarted in place"
    assert starts(detail)[1]["restored_from"] == "memory"
    assert f"rank {rank}: killed by SIGKILL" in starts(detail)[1]["cause"]
    assert len(victim.events("AgentUp")) == 2, "agents stay"
    assert victim.final_bytes() == undisturbed
    assert_chain_kept(victim, STEPS)
    victim.assert_nothing_left()


@pytest.mark.parametrize("rank", [0, 1])
def test_an_agent_killed(server: Server, undisturbed: bytes, rank: int) -> None:
    victim = GangVictim(server)
    victim.wait_event("CheckpointCommitted", lambda data: data["step"] > 20)
    assert victim.kill_agent_of(rank)
    detail = victim.finish()
    assert_recovered(detail, kills=1)
    assert detail["attempt"] == 2
    assert [event["rank"] for event in victim.events("AgentUp")].count(1 - rank) == 1, "the other one stays"
    assert victim.final_bytes() == undisturbed
    victim.assert_nothing_left()
