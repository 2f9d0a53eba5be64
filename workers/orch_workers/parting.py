"""An agent that has lost its cluster ends itself: its newest snapshot travels to storage first, if that can be reached.

Nobody can tell it anything any more, and nobody will close it.
"""

from __future__ import annotations

import logging
import shutil
import time
from typing import TYPE_CHECKING

from orch_workers.ending import DRAIN_LIMIT_S
from orch_workers.preemption.leaving import process_share_s

if TYPE_CHECKING:
    from orch_policies.lease import Verdict
    from orch_workers.config import WorkerPaths
    from orch_workers.worker import Worker

LEAVE_S = 30.0
"""For the training process' last step and save, and the way into storage. Where the cluster has given the node up,
its place may be taken already: then the process ends at once, and what it had saved is all that travels."""
END_LIMIT_S = LEAVE_S + DRAIN_LIMIT_S + 15.0
POLL_S = 0.05
TELL_S = 1.0
"""The controller may be there though the cluster is not: then it hears of this end from the agent itself."""

log = logging.getLogger(__name__)


def leave_cluster(worker: Worker, paths: WorkerPaths, verdict: Verdict, reason: str) -> None:
    """Returns when the worker has ended, or at END_LIMIT_S; this process is to end then, and its guards with it."""
    log.warning("%s: this agent ends", reason)
    if worker.ended:
        return  # what it has to tell is in its journal; its memory may hold what storage would not take
    until_s = time.monotonic() + LEAVE_S
    grace_s = process_share_s(LEAVE_S, worker.durable_s) if verdict == "expired" else 0.0
    worker.stop("left", grace_s, reason, until_s)
    deadline_s = time.monotonic() + END_LIMIT_S
    while not worker.ended and time.monotonic() < deadline_s:
        time.sleep(POLL_S)
    if worker.ended and not worker.unkept:
        forget_memory(paths)
    time.sleep(TELL_S)


def forget_memory(paths: WorkerPaths) -> None:
    """Gives the machine its memory back. The working area with the journal stays: it costs no memory, and goes when an
    agent comes here after the job is over (remains.py). Nothing is touched once a newer agent of the rank is here.
    """
    own = f"journal-{paths.attempt:06d}.jsonl"
    if any(path.name > own for path in paths.state.glob("journal-*.jsonl")):
        return
    for folder in (paths.snapshots, paths.socket.parent):
        shutil.rmtree(folder, ignore_errors=True)
    for shared in (paths.snapshots_job, paths.snapshots_job.parent, paths.socket.parent.parent):
        try:
            shared.rmdir()
        except OSError:
            continue  # another job has something in it
