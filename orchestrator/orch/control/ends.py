"""That a job is over is written into its storage too: `orch recover` must not run it again."""

from __future__ import annotations

import contextlib

from orch.control.home import Home
from orch.control.jobrecord import end_path, end_record, last_attempt
from orch.control.jobstorage import open_job_storage
from orch.control.store import Store
from orch_workers.checkpoint.errors import AlreadyExists


def record_end(store: Store, home: Home, job: str) -> None:
    """Can be repeated. StorageError while storage is away."""
    state = store.lifecycle(job)
    storage = open_job_storage(store, home, job)
    with contextlib.suppress(AlreadyExists):  # of this attempt, in other words perhaps, but the same end
        storage.create(end_path(job, last_attempt(state)), end_record(state))
