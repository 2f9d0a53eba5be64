"""What a worker tells of its present state: step, rate, metrics, use of the machine, and notes for people."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from orch.model.generation import Generation
from orch_workers.config import WorkerConfig
from orch_workers.curves import Curves, Objects
from orch_workers.process.sampling import Sampler
from orch_workers.reports import Reports
from orch_workers.training.page import Progress

PROGRESS_EVERY_S = 1.0
NOTES_MAX = 20
"""Newest notes that are told; all of them stand in the job's record."""


class Telling:
    """Thread-safe: notes are told at once, whatever the worker's loop is waiting for."""

    def __init__(self, reports: Reports, sampler: Sampler, look: Callable[[], dict[str, Any]]) -> None:
        """`look` finds what else is to be told, and under "page" the progress, None where no step is known."""
        self._reports, self._sampler, self._look = reports, sampler, look
        self._lock = threading.Lock()
        self._notes: list[str] = []
        self._metrics: dict[str, Any] = {}
        self._told_s, self._told_step, self._rate = 0.0, 0, 0.0
        self._curves: Curves | None = None

    def draw_of(self, config: WorkerConfig, objects: Objects) -> None:
        """Metrics go into the job's curves, too, from now on; those of rank 0, which speaks for all."""
        if not config.rank:
            config.paths.state.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._curves = Curves(objects, config.job_id, config.paths.state)

    def metrics(self, step: int, values: Mapping[str, Any]) -> None:
        with self._lock:
            self._metrics.update(values)
        if self._curves is not None:
            self._curves.put(step, values)

    def restored(self, generation: Generation, step: int) -> None:
        if self._curves is not None:
            self._curves.restored(generation, step)

    def committed(self, step: int) -> None:
        if self._curves is not None:
            self._curves.committed(step)

    def close(self) -> None:
        if self._curves is not None:
            self._curves.close()

    def note(self, message: str, generation: Generation, pids: Sequence[int]) -> None:
        with self._lock:
            if message in self._notes:
                return
            self._notes = [*self._notes, message][-NOTES_MAX:]
        self.tell(generation, pids)

    @property
    def due(self) -> bool:
        return time.monotonic() - self._told_s >= PROGRESS_EVERY_S

    def tell(self, generation: Generation, pids: Sequence[int]) -> None:
        with self._lock:
            found = self._look()
            page: Progress | None = found.pop("page")
            more_usage = found.pop("usage", {})
            now_s = time.monotonic()
            if page is not None and self._told_s and page.step >= self._told_step and now_s > self._told_s:
                self._rate = (page.step - self._told_step) / (now_s - self._told_s)
            self._told_s, self._told_step = now_s, page.step if page else 0
            self._reports.progress(
                {
                    "generation": str(generation),
                    "step": page.step if page else None,
                    "epoch": page.epoch if page else None,
                    "metrics": dict(self._metrics),
                    "steps_per_s": round(self._rate, 3) if page else None,
                    "aware": page is not None,
                    "notes": list(self._notes),
                    "usage": {**self._sampler.sample(pids), **more_usage},
                    **found,
                }
            )
