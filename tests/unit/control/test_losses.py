"""Whose death it was, from what Ray says of the agent and of its node."""

from __future__ import annotations

import pytest

from orch.control import cluster
from orch.control.cluster import Cluster, Fate, node_of_death
from orch.control.losses import agent_lost
from orch.control.rows import ProgressRow
from orch_policies.classification import lost_worker

NODE = "ab" * 28
S = 1_000_000
PROGRESS = ProgressRow(
    job="a-1", rank=0, generation="000001.000001", t_us=10 * S, step=52, epoch=0, steps_per_s=1.0, metrics={}, usage={}
)  # fmt: skip
DRAIN_MS = 1_700_000_030_000


class DiedError(Exception):
    preempted = False


class PreemptedError(DiedError):
    preempted = True


def row(**more):
    return {"NodeID": NODE, "Alive": True, "NodeManagerAddress": "10.0.0.5", "NodeManagerPort": 7, **more}


@pytest.fixture
def ray_says(monkeypatch):
    def say(*rows, draining=None, refuses=False):
        monkeypatch.setattr(cluster.ray, "nodes", lambda: list(rows))
        monkeypatch.setattr(cluster, "_draining", lambda: draining or {})
        monkeypatch.setattr(cluster, "_refuses", lambda host, port: refuses)

    return say


def lost(error=None, place=NODE, progress=PROGRESS):
    return agent_lost(
        Cluster(), 1, 0, error or DiedError("killed"), place=place, progress=progress, now_us=13 * S
    )


def kind(event):
    return lost_worker(
        event.evidence,
        node_lost=event.node_lost,
        preempted=event.preempted,
        node_state=event.node_state,
        drain_deadline_us=event.drain_deadline_us,
    ).kind


def test_an_agent_that_died_alone(ray_says):
    ray_says(row())
    found = lost()
    assert (found.node_lost, found.node_state, found.silent_s, found.step) == (False, "alive", None, 52)
    assert kind(found) == "agent_lost"


def test_a_node_that_ray_has_seen_dead(ray_says):
    ray_says(row(Alive=False, DeathReason=2, DeathReasonMessage="health check failed\n 4 times"))
    found = lost()
    assert (found.node_lost, found.node_state, found.silent_s) == (True, "dead", 3.0)
    assert found.evidence.startswith("node abababab (10.0.0.5) is dead: health check failed 4 times; ")
    assert kind(found) == "node_lost"


def test_a_raylet_that_refuses_is_dead_before_ray_knows(ray_says):
    ray_says(row(), refuses=True)
    found = lost()
    assert (found.node_lost, found.node_state) == (True, "dead")
    assert "its raylet is gone" in found.evidence
    assert kind(found) == "node_lost"


@pytest.mark.parametrize(("deadline_ms", "deadline_us"), [(DRAIN_MS, DRAIN_MS * 1000), (0, None)])
def test_a_node_that_is_being_drained(ray_says, deadline_ms, deadline_us):
    ray_says(row(), draining={NODE: deadline_ms})
    found = lost()
    assert (found.node_state, found.preempted, found.drain_deadline_us) == ("draining", True, deadline_us)
    assert kind(found) == "preempted"


def test_a_node_that_was_drained_and_is_gone(ray_says):
    reason = cluster._drained()
    ray_says(row(Alive=False, DeathReason=reason, DeathReasonMessage="preempted"))
    found = lost()
    assert (found.node_lost, found.preempted) == (True, True)
    assert kind(found) == "preempted"


def test_ray_says_of_the_death_itself_that_it_was_announced(ray_says):
    ray_says(row())
    assert kind(lost(PreemptedError("gone"))) == "preempted"


def test_of_an_agent_that_never_answered_the_node_is_read_from_the_death(ray_says):
    ray_says(row(Alive=False, DeathReason=2, DeathReasonMessage=""))
    told = f"The actor is dead because its node has died. Node Id: {NODE}\n\tthe actor's node was terminated"
    assert node_of_death(DiedError(told)) == NODE
    assert lost(DiedError(told), place=None, progress=None).node_lost
    assert not lost(DiedError("worker process has died"), place=None).node_lost


def test_a_node_that_ray_does_not_know(ray_says):
    ray_says()
    assert Cluster().fate(NODE) == Fate()
    assert kind(lost()) == "agent_lost"
