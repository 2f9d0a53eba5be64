"""Agents are found by the names that they were given."""

from __future__ import annotations

from orch_workers.actor_names import CONTROLLER_NAME, NAMESPACE, agent_name, agents_among


def test_agents_are_told_from_all_other_actors_by_their_names():
    agents = [("digits-1a2b", 1, 0), ("digits-1a2b", 12, 3)]
    named = [{"name": agent_name(*agent), "namespace": NAMESPACE} for agent in agents]
    others = [
        {"name": CONTROLLER_NAME, "namespace": NAMESPACE},
        {"name": agent_name("digits-1a2b", 1, 0), "namespace": "somebody's"},
        {"name": "agent", "namespace": ""},
    ]
    assert agents_among([*others, *named]) == agents
