"""Machines that were announced to go away: nothing is placed there until it is clear whether they do.

A cordon is kept with the job that got the notice, and holds for all. Ray's own drain does the same where it was Ray
that announced it; of a cloud's notice Ray knows nothing.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from orch.model.spec import JobSpec
from orch_policies.placement import Node, Request, fits

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Any

    from orch.control.cluster import Node as ClusterNode
    from orch.model.states import JobState


def request_of(spec: Mapping[str, Any]) -> Request:
    """What a job's gang asks for."""
    asked = JobSpec.model_validate(spec)
    resources = asked.resources
    return Request(
        workers=resources.workers,
        cpus=float(resources.cpus),
        gpus=float(resources.gpus),
        memory_bytes=int(resources.memory_bytes or 0),
        labels=dict(asked.placement.labels),
    )


def room_on(node: ClusterNode) -> Node:
    """In all, not what is free."""
    return Node(node.address, node.cpus, node.gpus, int(node.memory_bytes), node.labels)


def cordoned(jobs: Iterable[JobState], now_us: int) -> dict[str, int]:
    """Ray's node id → until when (microseconds UTC), of all cordons that hold now."""
    found: dict[str, int] = {}
    for job in jobs:
        for node, until_us in job.cordoned.items():
            if until_us > now_us:
                found[node] = max(until_us, found.get(node, 0))
    return found


def why_held(request: Request, nodes: Sequence[ClusterNode], cordons: Mapping[str, int]) -> str:
    """Why a job waits for a cordon to end; empty where it need not: there is room elsewhere, or nowhere at all."""
    here = {node.node_id: room_on(node) for node in nodes}
    open_nodes = [node for node_id, node in here.items() if node_id not in cordons]
    if fits(request, open_nodes).fits or not fits(request, list(here.values())).fits:
        return ""
    closed = {node_id: here[node_id].node for node_id in cordons if node_id in here}
    until_us = min(cordons[node_id] for node_id in closed)
    until = datetime.fromtimestamp(until_us / 1e6, UTC).strftime("%H:%M:%S UTC")
    return (
        f"{', '.join(sorted(set(closed.values())))} is to go away, so nothing is placed there until {until}"
    )
