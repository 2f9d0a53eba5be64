"""A folder as storage is only good for a job if every machine that may run it sees the same folder.

Proved, not believed: the server wrote `job.json` there when the job was submitted, and the agent looks for it before
anything else is done. Without that proof a job that moves to another machine would find no checkpoint, and start over.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from orch.model.storage_url import split_storage_url
from orch_workers.checkpoint.errors import NotFound, StorageRefused
from orch_workers.checkpoint.storage import open_storage

if TYPE_CHECKING:
    from collections.abc import Callable

    from orch_workers.config import WorkerConfig

TRIES_MAX = 10
"""A network file system may show a new file to others only after some seconds."""
PAUSE_S = 1.0


def assert_shared(config: WorkerConfig, host: str, pause: Callable[[float], None] = time.sleep) -> None:
    """StorageRefused where the job's storage is a folder and this machine's is another one."""
    if split_storage_url(config.storage_url)[0] != "file":
        return
    storage = open_storage(config.storage_url, unfenced=config.unfenced)
    for left in reversed(range(TRIES_MAX)):
        try:
            storage.size(f"{config.job_id}/job.json")
        except NotFound:
            if left:
                pause(PAUSE_S)
        else:
            return
    raise StorageRefused(
        f"checkpoint.storage: {config.storage_url} on {host} is not the folder that the server writes to: what it wrote"
        " there for this job is not here. Use a folder that all machines share, or a URL such as s3://bucket/prefix"
    )
