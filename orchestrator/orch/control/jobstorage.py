"""A job's storage, opened as its spec names it."""

from __future__ import annotations

from collections.abc import Mapping

from orch.control.configs import storage_of
from orch.control.home import Home
from orch.control.secrets import SecretBox
from orch.control.store import Store
from orch.model.spec import JobSpec
from orch_workers.checkpoint.storage import Storage, open_storage


def open_spec_storage(spec: JobSpec, env: Mapping[str, str]) -> Storage:
    """`env`: the job's, its secrets too; credentials are taken from it. StorageRefused."""
    url, options = storage_of(spec)
    return open_storage(url, options, env, unfenced=spec.checkpoint.unfenced)


def open_job_storage(store: Store, home: Home, job: str) -> Storage:
    """Of a job that is in the store, with its own credentials."""
    spec = JobSpec.model_validate(store.job(job).spec)
    secrets = SecretBox.of(home).unseal(job, store.sealed_secrets(job))
    return open_spec_storage(spec, {**spec.env, **secrets})
