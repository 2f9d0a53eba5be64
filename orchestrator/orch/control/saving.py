"""Before a planned stop of the server: every worker saves what it holds."""

from __future__ import annotations

import logging
import time
from typing import Any

from orch.control.acting import Acts
from orch.control.cluster import Cluster

POLL_S = 0.05

log = logging.getLogger("orch.saving")


def leave_all(cluster: Cluster, acts: Acts, limit_s: float) -> int:
    """Asks all agents at once to save and to end their training processes; returns how many were done in time."""
    deadline = time.monotonic() + limit_s
    waiting: list[Any] = []
    for job, attempt, rank in cluster.agents():
        handle = cluster.find_agent(job, attempt, rank)
        if handle is not None:
            acts.tell(handle, "stop", "left", limit_s / 2)
            waiting.append(handle)
    done = 0
    for handle in waiting:
        while time.monotonic() < deadline:
            try:
                if cluster.call(handle, "ended", limit_s=max(0.1, deadline - time.monotonic())):
                    done += 1
                    break
            except Exception as error:
                log.warning("an agent did not answer while the server stops: %s", error)
                break
            time.sleep(POLL_S)
    return done
