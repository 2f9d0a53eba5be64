"""A job of two ranks that is killed on purpose, one part of it at a time; for tests/chaos and the soak."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from support.nodes import ELSEWHERE, Node, Pool
from support.recovery import Victim, assert_chain_kept, assert_recovered, kill, starts

if TYPE_CHECKING:
    from support.server import Server

FOLDER = Path(__file__).parent.parent / "chaos" / "gang_jobs"
STEPS = 300
"""Of that job, on every rank."""
SLOWLY = "--set=env.PRODUCTS=20"
"""So that it still works when what is to happen to it happens."""


class GangVictim(Victim):
    def __init__(self, server: Server, *options: str, folder: Path = FOLDER) -> None:
        super().__init__(server, *options, folder=folder)

    def newest(self, kind: str, rank: int) -> dict[str, Any]:
        found: dict[str, Any] = self.wait_event(kind, lambda data: data["rank"] == rank)
        return found

    def wait_checkpoint(self, beyond: int = 20) -> None:
        self.wait_event("CheckpointCommitted", lambda data: data["step"] > beyond)


def process_killed(server: Server, _pool: Pool, undisturbed: bytes, rank: int) -> dict[str, Any]:
    victim = GangVictim(server, SLOWLY)
    victim.wait_checkpoint()
    assert kill(victim.newest("ProcessStarted", rank)["pid"])
    detail = victim.finish()
    assert_recovered(detail, kills=1)
    assert detail["attempt"] == 1, "restarted in place"
    assert starts(detail)[1]["restored_from"] == "memory"
    assert f"rank {rank}: killed by SIGKILL" in starts(detail)[1]["cause"]
    assert len(victim.events("AgentUp")) == 2, "agents stay"
    assert_chain_kept(victim, STEPS)
    return _over(victim, undisturbed, detail)


def agent_killed(server: Server, _pool: Pool, undisturbed: bytes, rank: int) -> dict[str, Any]:
    victim = GangVictim(server, SLOWLY)
    victim.wait_checkpoint()
    assert kill(victim.newest("AgentUp", rank)["pid"])
    detail = victim.finish()
    assert_recovered(detail, kills=1)
    assert detail["attempt"] == 2
    assert [event["rank"] for event in victim.events("AgentUp")].count(1 - rank) == 1, "the other one stays"
    return _over(victim, undisturbed, detail)


def preempted(server: Server, _pool: Pool, undisturbed: bytes, _rank: int) -> dict[str, Any]:
    """All save one step that nobody had reached, leave, and go on from it."""
    victim = GangVictim(server, SLOWLY)
    victim.wait_checkpoint()
    server.client().preempt(victim.id, grace_s=20.0)
    detail = victim.finish()
    assert_recovered(detail, kills=1)
    assert starts(detail)[1]["lost_steps"] == 0
    assert detail["charges"]["preemptions"] + detail["charges"]["given_back"] == 1
    assert_chain_kept(victim, STEPS)
    return _over(victim, undisturbed, detail)


def node_killed(server: Server, pool: Pool, undisturbed: bytes, rank: int) -> dict[str, Any]:
    """The power fails on one of two machines; a third one takes its rank, the other keeps agent and memory."""
    nodes = pool.two()
    victim = GangVictim(server, ELSEWHERE, SLOWLY)
    places = {at: victim.newest("AgentUp", at)["node_id"] for at in (0, 1)}
    assert set(places.values()) == {node.id for node in nodes}, "one rank on each"
    spare = Node(server).ready()
    try:
        victim.wait_checkpoint()
        next(node for node in nodes if node.id == places[rank]).kill()
        lost = victim.wait_event("AgentLost")
        assert (lost["rank"], lost["node_lost"]) == (rank, True)
        detail = victim.finish()
        assert_recovered(detail, kills=1)
        assert detail["charges"]["preemptions"] + detail["charges"]["given_back"] == 1
        ups = victim.events("AgentUp")
        assert [event["rank"] for event in ups].count(1 - rank) == 1, "the other one stays"
        assert ups[-1]["node_id"] == spare.id
        return _over(victim, undisturbed, detail)
    finally:
        spare.remove()


def _over(victim: GangVictim, undisturbed: bytes, detail: dict[str, Any]) -> dict[str, Any]:
    assert victim.final_bytes() == undisturbed
    victim.assert_nothing_left()
    found = starts(detail)[-1]
    return {name: found[name] for name in ("restored_from", "lost_steps", "recovery_s")}


ROWS: dict[str, Callable[[Server, Pool, bytes, int], dict[str, Any]]] = {
    "process": process_killed,
    "agent": agent_killed,
    "preempted": preempted,
    "node": node_killed,
}
"""By turns in the soak; the rank is the one that it hits."""
