"""A workdir with a job file in it."""

from __future__ import annotations

import pytest

from orch.model.jobfile import JobFileError, load_job


@pytest.fixture
def folder(tmp_path):
    """A workdir called digits; what is written there is the job file."""
    path = tmp_path / "digits"
    path.mkdir()
    return path


@pytest.fixture
def write(folder, monkeypatch):
    monkeypatch.chdir(folder)

    def job(text):
        (folder / "job.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
        return "job.yaml"

    return job


@pytest.fixture
def refused():
    """Loads a file that must be refused, and gives the error."""

    def load(path, *overrides, **options):
        with pytest.raises(JobFileError) as caught:
            load_job(path, overrides, **options)
        assert caught.value.exit_code == 2
        assert caught.value.problems
        return caught.value

    return load
