"""Slurm: the end of the allocation, which the job's environment names.

The signal that Slurm sends before it (`--signal=TERM@120`) and on preemption is a SIGTERM to every process of the
step, the agent among them: sigterm.py. A signal without a handler in Ray (USR1) would end Ray itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from orch_workers.preemption.notice import Moment, Notice, deadline_at

if TYPE_CHECKING:
    from collections.abc import Mapping

INTERVAL_S = 10.0
_NAME = "slurm"


class Slurm:
    name, interval_s, cloud = _NAME, INTERVAL_S, False

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._job = environment.get("SLURM_JOB_ID", "")
        text = environment.get("SLURM_JOB_END_TIME", "")
        self._end_s = int(text) if text.isascii() and text.isdigit() else 0

    def probe(self) -> bool:
        return bool(self._job and self._end_s)

    def poll(self, now: Moment) -> Notice:
        """From the first moment on; the watcher tells it in time."""
        return Notice(
            _NAME,
            "preempt",
            f"the time limit of Slurm job {self._job} ends",
            f"slurm {self._job} {self._end_s}",
            deadline_at(self._end_s, now),
        )
