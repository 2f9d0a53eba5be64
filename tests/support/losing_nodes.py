"""One loss of a node each, with everything that must hold afterwards; for tests/chaos and the soak.

Each returns what it measured. Nothing asserts a time.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from support.leftovers import of_jobs
from support.nodes import ELSEWHERE, Node, Pool, place_of
from support.recovery import STEPS, Victim, assert_chain_kept, assert_recovered, starts
from support.server import wait_for

if TYPE_CHECKING:
    import random

    from support.server import Server

GRACE_S = 20.0
"""Time for one step and one small checkpoint, many times over."""
GONE_LIMIT_S = 60.0
AWAKE = "--set=env.PRODUCTS=20"
"""So that the successor still works when the one that slept wakes up."""


def killed(server: Server, pool: Pool, rng: random.Random, undisturbed: bytes) -> dict[str, Any]:
    """The power fails: raylet, agent, guard, training process and memory are gone in one moment."""
    nodes = pool.two()
    victim = Victim(server, ELSEWHERE)
    node = at_work(victim, nodes, rng)
    node.kill()
    killed_s = time.monotonic()
    lost = victim.wait_event("AgentLost")
    seen_s = time.monotonic() - killed_s
    assert_lost_with_its_node(victim, lost, node)
    detail = assert_went_on(victim, undisturbed, nodes, node, told_of_all=False)
    assert starts(detail)[-1]["restored_from"] == "storage"
    return measured(detail, seen_s=round(seen_s, 2))


def drained(server: Server, pool: Pool, rng: random.Random, undisturbed: bytes) -> dict[str, Any]:
    nodes = pool.two()
    victim = Victim(server, ELSEWHERE)
    node = at_work(victim, nodes, rng)
    node.drain(GRACE_S)
    return _assert_left_in_time(victim, undisturbed, nodes, node, sources={"ray"})


def terminated(server: Server, pool: Pool, rng: random.Random, undisturbed: bytes) -> dict[str, Any]:
    """SIGTERM to `ray start --block`: it drains its node itself, and ends it."""
    nodes = pool.two()
    victim = Victim(server, ELSEWHERE)
    node = at_work(victim, nodes, rng)
    node.terminate()
    found = _assert_left_in_time(victim, undisturbed, nodes, node, sources={"ray", "sigterm"})
    wait_for("nothing is left of the node", node.ended, GONE_LIMIT_S)
    return found


def frozen(server: Server, pool: Pool, rng: random.Random, undisturbed: bytes) -> dict[str, Any]:
    """Everything on the node stops, is given up, and wakes when the job works elsewhere: a zombie."""
    nodes = pool.two()
    victim = Victim(server, ELSEWHERE, AWAKE)
    node = at_work(victim, nodes, rng, most=STEPS // 4)
    node.freeze()
    frozen_s = time.monotonic()
    lost = victim.wait_event("AgentLost")
    seen_s = time.monotonic() - frozen_s
    assert_lost_with_its_node(victim, lost, node)
    assert lost["silent_s"] > 1.0, "nobody had heard of it for longer than agents are silent"
    victim.wait_event("Recovered", lambda data: data["generation"] == "000002.000001")
    assert not victim.over, "too late to be a zombie"
    asleep = {process.pid for process in node.processes()}
    assert asleep
    node.thaw()
    woken_s = time.monotonic()
    wait_for("the zombie ends, with everything on its node", node.ended, GONE_LIMIT_S)
    gone_s = time.monotonic() - woken_s
    assert not victim.over, "it ended only because its job was over"
    detail = assert_went_on(victim, undisturbed, nodes, node, told_of_all=False)
    return measured(detail, seen_s=round(seen_s, 2), zombie_gone_s=round(gone_s, 2))


# what is common to them


def at_work(victim: Victim, nodes: list[Node], rng: random.Random, most: int = STEPS // 2) -> Node:
    """Its node, once it has a checkpoint of its own and has made some more steps."""
    node = place_of(victim, nodes)
    victim.wait_event("CheckpointCommitted", lambda data: data["step"] > 1)
    victim.wait_step(rng.randrange(STEPS // 6, most))
    assert not victim.over
    return node


def assert_lost_with_its_node(victim: Victim, lost: dict[str, Any], node: Node) -> None:
    assert lost["node_lost"], lost
    assert lost["node_state"] == "dead", lost
    assert f"node {node.id[:8]}" in lost["evidence"], lost
    told = victim.server.cli("events", victim.id).stdout
    assert "agent of rank 0 and its node are gone" in told
    assert "preemptions 1" in told


def assert_went_on(
    victim: Victim,
    undisturbed: bytes,
    nodes: list[Node],
    left: Node,
    *,
    steps: int = STEPS,
    told_of_all: bool = True,
) -> dict[str, Any]:
    detail = victim.finish()
    assert_recovered(detail, kills=1)
    assert detail["attempt"] == 2
    assert place_of(victim, nodes, attempt=2) is not left
    assert detail["charges"]["preemptions"] + detail["charges"]["given_back"] >= 1, detail["charges"]
    assert detail["charges"]["failures"] == 0, detail["charges"]
    assert victim.final_bytes() == undisturbed
    assert_chain_kept(victim, steps, told_of_all=told_of_all)
    elsewhere = [node for node in nodes if node is not left]
    wait_for("nothing of the job is left where it ended", lambda: not _remains(victim, elsewhere), 20.0)
    return detail


def _remains(victim: Victim, nodes: list[Node]) -> list[str]:
    found = of_jobs(victim.server.home, [victim.id])
    return found + [str(path) for node in nodes for path in [*node.memory(), *node.job_folders()]]


def _assert_left_in_time(
    victim: Victim, undisturbed: bytes, nodes: list[Node], node: Node, sources: set[str]
) -> dict[str, Any]:
    noticed = victim.wait_event("PreemptionNoticed")
    assert noticed["source"] in sources
    assert noticed["node_id"] == node.id, "cordoned"
    detail = assert_went_on(victim, undisturbed, nodes, node)
    assert not victim.events("AgentLost"), "it left, and was not lost"
    assert starts(detail)[-1]["lost_steps"] == 0
    return measured(detail)


def measured(detail: dict[str, Any], **more: float) -> dict[str, Any]:
    last = starts(detail)[-1]
    return {**more, "restored_step": last["restored_step"], "lost_steps": last["lost_steps"]}
