"""What jobs that are over left on this machine when nobody could sweep it: it was cut off, or died and is back.

Swept by the next agent that comes here, which asks the controller which jobs are over.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from orch_workers.sweep import sweep_job

if TYPE_CHECKING:
    from orch_workers.config import WorkerPaths

JOBS_MAX = 200
"""Asked for at once; the rest waits for the next agent."""

log = logging.getLogger(__name__)


def jobs_here(paths: WorkerPaths) -> list[str]:
    """Other jobs that have a working area on this node."""
    folder = paths.job.parent
    found = sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    return [job for job in found if job != paths.job_id][:JOBS_MAX]


def sweep_remains(paths: WorkerPaths, over: Callable[[list[str]], Iterable[str]]) -> list[str]:
    """Sweeps those of the other jobs that are over; returns their ids. `over`: which of these are."""
    here = jobs_here(paths)
    swept = []
    for job in over(here) if here else ():
        if job not in here:
            continue
        theirs = replace(paths, job_id=job)
        names = (path.name.removeprefix("rank-") for path in theirs.job.glob("rank-*"))
        ranks = {int(name) for name in names if name.isdigit()}
        try:
            for rank in sorted(ranks) or [0]:
                sweep_job(replace(theirs, rank=rank))
        except Exception:
            log.exception("what %s left here could not be swept", job)
            continue
        swept.append(job)
    return swept
