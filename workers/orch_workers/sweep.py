"""Nothing outlives its job: what is removed from a machine when the job is over."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

from orch_workers.config import WorkerPaths
from orch_workers.process.guarded import wait_predecessor

PROCESSES_LIMIT_S = 30.0


def sweep_job(paths: WorkerPaths) -> None:
    """Ends whatever still runs of the worker, then removes its snapshots, socket and working area. Repeatable.

    Logs stay: they are what a person reads afterwards.
    """
    for place in (*paths.guards, paths.builds):
        if place.exists():
            wait_predecessor(place, PROCESSES_LIMIT_S)
    for folder in _places(paths):
        shutil.rmtree(folder, ignore_errors=True)
    for shared in (paths.snapshots_job, paths.snapshots_job.parent, paths.socket.parent.parent):
        with contextlib.suppress(OSError):
            shared.rmdir()  # only when no other job has anything in it


def remains(paths: WorkerPaths) -> list[str]:
    """What of the worker is still on this machine, for the check that nothing is."""
    return [str(folder) for folder in _places(paths) if folder.exists()]


def _places(paths: WorkerPaths) -> list[Path]:
    """The working area stays while it holds the only copy of what the job was to bring back."""
    kept = paths.undelivered.exists()
    return [paths.snapshots, paths.socket.parent, *([] if kept else [paths.job])]
