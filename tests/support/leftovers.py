"""Nothing outlives its job: what of some jobs, and of a server that was stopped, is still on this machine."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import psutil

from orch.control.raylocal import ray_processes
from orch_workers.config import WorkerPaths
from support.server import WaitedError, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

GONE_LIMIT_S = 20.0
"""What was told to end may take so long to be seen gone."""


def assert_nothing_left(home: Path, jobs: Iterable[str]) -> None:
    """Of a server that was stopped, and of its jobs, which are all over."""
    ended = list(jobs)

    def nothing() -> bool:
        return not (_server_processes(home) or of_jobs(home, ended))

    try:
        wait_for("nothing is left", nothing, GONE_LIMIT_S)
    except WaitedError:
        found = [_described(process) for process in _server_processes(home)] + of_jobs(home, ended)
        raise AssertionError("left behind: " + "; ".join(found)) from None


def of_jobs(home: Path, jobs: Iterable[str], rank: int = 0) -> list[str]:
    """Processes, snapshots, sockets and working areas of `jobs`, in words. Logs may stay."""
    ids = set(jobs)
    found = [
        _described(process) for process in psutil.process_iter() if _variable(process, "ORCH_JOB_ID") in ids
    ]
    for job in ids:
        paths = WorkerPaths(job, rank, home / "node", home / "jobs")
        places = (paths.snapshots_job, paths.socket.parent, paths.job)
        found += [str(place) for place in places if place.exists()]
    return found


def _server_processes(home: Path) -> list[psutil.Process]:
    started = [process for process in psutil.process_iter() if _variable(process, "ORCH_HOME") == str(home)]
    return [
        process for process in started + ray_processes(home) if process.pid != os.getpid() and _lives(process)
    ]


def _variable(process: psutil.Process, name: str) -> str | None:
    try:
        return process.environ().get(name)
    except (psutil.Error, OSError):
        return None  # gone meanwhile, or somebody else's


def _lives(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _described(process: psutil.Process) -> str:
    try:
        return f"process {process.pid} ({' '.join(process.cmdline())[:120]})"
    except psutil.Error:
        return f"process {process.pid}"
