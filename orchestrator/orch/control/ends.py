"""That a job is over is written into its storage too: `orch recover` must not run it again."""

from __future__ import annotations

import contextlib

from orch.control.configs import storage_of
from orch.control.home import Home
from orch.control.jobrecord import end_path, end_record
from orch.control.secrets import SecretBox
from orch.control.store import Store
from orch.model.spec import JobSpec
from orch_workers.checkpoint.errors import AlreadyExists
from orch_workers.checkpoint.storage import open_storage


def record_end(store: Store, home: Home, job: str) -> None:
    """Can be repeated. StorageError while storage is away."""
    state = store.lifecycle(job)
    spec = JobSpec.model_validate(store.job(job).spec)
    env = {**spec.env, **SecretBox.of(home).unseal(job, store.sealed_secrets(job))}
    url, options = storage_of(spec)
    storage = open_storage(url, options, env, unfenced=spec.checkpoint.unfenced)
    with contextlib.suppress(
        AlreadyExists
    ):  # an end of this attempt is there: in other words, but the same end
        storage.create(end_path(job, state.attempt), end_record(state))
