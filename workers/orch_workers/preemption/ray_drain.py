"""Ray's node drain (`ray drain-node`, an autoscaler, SIGTERM to `ray start --block`). Only agent.py can ask Ray."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orch_workers.preemption.notice import Moment, Notice, deadline_at

if TYPE_CHECKING:
    from collections.abc import Callable

INTERVAL_S = 1.0
"""A question costs a third of a millisecond."""
_NAME = "ray"


class RayDrain:
    """`look()`: the drain's deadline in milliseconds UTC, 0 for one without a deadline, None: not drained."""

    name, interval_s, cloud = _NAME, INTERVAL_S, False

    def __init__(self, look: Callable[[], int | None]) -> None:
        self._look = look

    def probe(self) -> bool:
        return True

    def poll(self, now: Moment) -> Notice | None:
        deadline_ms = self._look()
        if deadline_ms is None:
            return None
        deadline = deadline_at(deadline_ms / 1000, now) if deadline_ms > 0 else None
        return Notice(_NAME, "preempt", "Ray drains this node", f"ray {deadline_ms}", deadline)
