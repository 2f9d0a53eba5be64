"""What an agent does about a notice: says it, saves, flushes, leaves; the sooner of two deadlines counts.

The time until the deadline has two parts: the training process may use the first to reach its next step and to save,
the rest belongs to the way into storage, as long as that has taken before.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from typing import TYPE_CHECKING, Protocol

from orch.model.events import PreemptionNoticed
from orch_workers.preemption.notice import Moment, Notice, deadline_in
from orch_workers.preemption.watcher import SOONER_BY_S

if TYPE_CHECKING:
    from pathlib import Path

    from orch.model.events import Event

FLUSH_SHARE_MIN, FLUSH_SHARE_MAX = 0.3, 0.6
"""Bounds of the part of the grace period that is kept for storage."""
FLUSH_MARGIN = 2.0
"""Times what a save has needed until it was durable."""
ANSWERED_MAX = 32

log = logging.getLogger(__name__)


class Leaver(Protocol):
    """The worker, as far as it is needed here."""

    @property
    def ended(self) -> bool: ...
    @property
    def durable_s(self) -> float | None:
        """How long a save takes from memory into storage; None while it is not known."""
        ...

    def stop(self, outcome: str, grace_s: float, reason: str = "", until_s: float | None = None) -> None: ...
    def save_soon(self) -> None: ...


class Teller(Protocol):
    """The worker's Reports, as far as they are needed here."""

    def add(self, event: Event) -> None: ...


def process_share_s(left_s: float, durable_s: float | None) -> float:
    """How much of `left_s` the training process may use before it is ended."""
    wanted_s = FLUSH_MARGIN * (durable_s or 0.0)
    flush_s = min(max(wanted_s, FLUSH_SHARE_MIN * left_s), FLUSH_SHARE_MAX * left_s)
    return max(0.0, left_s - flush_s)


class Leaving:
    """Thread-safe: notices come from the watcher, from a signal and from the controller."""

    def __init__(
        self,
        worker: Leaver,
        reports: Teller,
        *,
        attempt: int,
        rank: int,
        node_id: str,
        grace_s: float,
        path: Path,
    ) -> None:
        """`grace_s`: where a notice names no deadline. `path`: keeps the notices that this machine was left for."""
        self._worker, self._reports, self._attempt, self._rank = worker, reports, attempt, rank
        self._node_id, self._grace_s, self._path = node_id, grace_s, path
        self._lock = threading.Lock()
        self._until_s: float | None = None
        self.answered = _read(path)
        """Keys of notices that were answered already; they still stand in the metadata, perhaps for ever."""

    def notice(self, notice: Notice) -> None:
        """Returns at once; the worker leaves in its own time."""
        with self._lock:
            if self._worker.ended:
                return
            deadline = notice.deadline
            if deadline is None and notice.leaves:
                deadline = deadline_in(self._grace_s, Moment.now())
            self._tell(notice, deadline)
            if not notice.leaves or deadline is None:
                self._worker.save_soon()
                return
            if notice.key:
                self._remember(notice.key)
            if self._until_s is not None and deadline.monotonic_s > self._until_s - SOONER_BY_S:
                return  # it leaves for an earlier one
            self._until_s = deadline.monotonic_s
            left_s = max(0.0, deadline.monotonic_s - time.monotonic())
            share_s = process_share_s(left_s, self._worker.durable_s)
            self._worker.stop("left", share_s, notice.reason, deadline.monotonic_s)

    def _tell(self, notice: Notice, deadline: Moment | None) -> None:
        self._reports.add(
            PreemptionNoticed(
                attempt=self._attempt,
                rank=self._rank,
                source=notice.source,
                reason=notice.reason,
                deadline_us=None if deadline is None else round(deadline.wall_s * 1e6),
                node_id=self._node_id if notice.machine and notice.leaves else "",
                leaves=notice.leaves,
            )
        )

    def _remember(self, key: str) -> None:
        self.answered = (*(known for known in self.answered if known != key), key)[-ANSWERED_MAX:]
        try:
            beside = self._path.with_suffix(".new")
            beside.write_text(json.dumps(list(self.answered)))
            beside.replace(self._path)
        except OSError as error:
            # An agent that comes back here before the machine goes will leave once more.
            log.warning("a notice could not be noted on this machine: %s", error)


def _read(path: Path) -> tuple[str, ...]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return ()
    return (
        tuple(key for key in found if isinstance(key, str))[-ANSWERED_MAX:] if isinstance(found, list) else ()
    )
