"""An agent's death, with everything that shows whose it was: the agent's own, or its machine's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orch.control.cluster import Fate, death_evidence, node_of_death, was_announced
from orch.model.events import AgentLost

if TYPE_CHECKING:
    from orch.control.cluster import Cluster
    from orch.control.rows import ProgressRow


def agent_lost(
    cluster: Cluster,
    attempt: int,
    rank: int,
    error: BaseException,
    *,
    place: str | None,
    progress: ProgressRow | None,
    now_us: int,
) -> AgentLost:
    """`place`: its node, where it had answered. `progress`: what was heard of the rank last."""
    node = place or node_of_death(error)
    fate = cluster.fate(node) if node else Fate()
    node_lost = fate.state == "dead"
    said = death_evidence(error)
    heard_s = None if progress is None else max(0.0, (now_us - progress.t_us) / 1e6)
    return AgentLost(
        attempt=attempt,
        rank=rank,
        evidence=f"{fate.words}; {said}" if fate.words else said,
        node_lost=node_lost,
        step=None if progress is None else progress.step,
        preempted=was_announced(error) or fate.announced,
        node_state=fate.state,
        drain_deadline_us=fate.drain_deadline_us,
        # An agent's own death is seen in milliseconds, whenever it was heard last.
        silent_s=heard_s if node_lost else None,
    )
