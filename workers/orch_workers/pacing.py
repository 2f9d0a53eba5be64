"""How often this worker's training process is asked to save: the job file's words, with what saves cost here.

The rules are `orch_policies.interval`'s. Measured here: how long a save blocks training and how long the writer
then needs. Seen by the controller, and handed over with each attempt: how often jobs fail, and what this job's
saves have cost before. What happens within the attempt is added here.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import replace
from statistics import median
from typing import TYPE_CHECKING, Any

from orch_policies.interval import Every, Pace, pace
from orch_policies.young_daly import Cost, Seen

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from orch_workers.config import WorkerConfig

MEASURED = 9
"""Newest saves whose median counts: one that met a busy disk does not move it."""


class Pacing:
    """Thread-safe. Told what happens (`started`, `saved`, `drained`), it says when the next save is due."""

    def __init__(
        self, every: Every, seen: Mapping[str, Any], monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        """`seen`: what `orch.control.failures.observed` found; {} where there is no controller."""
        self._every, self._monotonic = every, monotonic
        self._job, self._others = (Seen(**seen.get(name, {})) for name in ("job", "others"))
        self._before: tuple[float | None, float | None] = (seen.get("blocked_s"), seen.get("durable_s"))
        self._lock = threading.Lock()
        self._began_s: float | None = None
        self._restarts = -1
        self._cold = True
        self._first_s: float | None = None
        self._blocked: deque[float] = deque(maxlen=MEASURED)
        self._durable: deque[float] = deque(maxlen=MEASURED)

    @classmethod
    def of(cls, config: WorkerConfig) -> Pacing:
        every = Every(
            config.every_steps,
            config.every_seconds,
            config.every_epochs,
            auto=config.every_auto,
            overhead_max=config.max_overhead,
        )
        return cls(every, config.seen)

    def started(self) -> None:
        """A training process was started: the first of this attempt, or after a failure that the leader mended."""
        with self._lock:
            self._began_s = self._monotonic() if self._began_s is None else self._began_s
            self._restarts += 1
            self._cold = True

    def saved(self, blocked_s: Any) -> None:
        """A snapshot was taken, and training stood still for so long."""
        if not isinstance(blocked_s, (int, float)) or not blocked_s >= 0:
            return
        with self._lock:
            if self._cold:
                # The first of a process also makes the plan and touches the slot: it counts while there is no other.
                self._cold, self._first_s = False, float(blocked_s)
            else:
                self._blocked.append(float(blocked_s))

    def drained(self, durable_s: float) -> None:
        """The writer is done with a save; it took so long, its retries and what it deleted included."""
        with self._lock:
            self._durable.append(durable_s)

    @property
    def every(self) -> Every:
        """With the seconds that count now."""
        return replace(self._every, seconds=self._pace()[0].seconds)

    def admits(self, reason: str, since_saved_s: float) -> bool:
        """Whether a save that the training process counts to be due may be taken now."""
        return self._pace()[0].admits(reason, since_saved_s)

    def status(self) -> dict[str, Any]:
        """For `orch status`; numbers in seconds, None for what is not known or does not count."""
        found, (blocked_s, durable_s), job = self._pace()
        return {
            "sentence": found.sentence,
            "auto": self._every.auto,
            "interval_s": found.seconds,
            "apart_s": found.apart_s or None,
            "blocked_s": blocked_s,
            "durable_s": durable_s,
            "failures": job.failures,
            "running_s": round(job.running_s, 1),
        }

    def _pace(self) -> tuple[Pace, tuple[float | None, float | None], Seen]:
        with self._lock:
            here_s = 0.0 if self._began_s is None else self._monotonic() - self._began_s
            job = Seen(self._job.failures + max(0, self._restarts), self._job.running_s + here_s)
            blocked_s = median(self._blocked) if self._blocked else self._first_or_before()
            durable_s = median(self._durable) if self._durable else self._before[1]
        cost = None if blocked_s is None else Cost(blocked_s, durable_s)
        return pace(self._every, cost, job, self._others), (blocked_s, durable_s), job

    def _first_or_before(self) -> float | None:
        before_s = self._before[0]
        return self._first_s if before_s is None else before_s
