"""What orch's actors are called in Ray: controller and agents find each other by that. Knows nothing else of Ray."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

NAMESPACE = "orch"
CONTROLLER_NAME = "controller"
_AGENT = "agent"


def agent_name(job_id: str, attempt: int, rank: int) -> str:
    """`attempt`: the one that placed it."""
    return f"{_AGENT}/{job_id}/{attempt:06d}/{rank}"


def agents_among(named: Iterable[Mapping[str, str]]) -> list[tuple[str, int, int]]:
    """(job, attempt, rank) of every agent; `named`: as `ray.util.list_named_actors(all_namespaces=True)` has them."""
    found = []
    for entry in named:
        kind, *parts = entry["name"].split("/")
        if entry["namespace"] == NAMESPACE and kind == _AGENT:
            found.append((parts[0], int(parts[1]), int(parts[2])))
    return found
