"""A folder as storage that is another one on the machine where the job was placed."""

from __future__ import annotations

import pytest

from orch_workers.checkpoint.errors import StorageRefused
from orch_workers.shared import TRIES_MAX, assert_shared


@pytest.fixture
def config(machine, tmp_path):
    return machine.config(storage_url=str(tmp_path / "storage"))


def submitted(config, tmp_path):
    folder = tmp_path / "storage" / config.job_id
    folder.mkdir(parents=True)
    (folder / "job.json").write_text("{}")


def test_what_the_server_wrote_is_there(config, tmp_path):
    submitted(config, tmp_path)
    assert_shared(config, "node-a", pause=lambda _: pytest.fail("no need to wait"))


def test_what_the_server_wrote_comes_late(config, tmp_path):
    pauses = []

    def pause(seconds):
        pauses.append(seconds)
        if len(pauses) == 3:
            submitted(config, tmp_path)

    assert_shared(config, "node-a", pause=pause)
    assert len(pauses) == 3


def test_it_never_comes(config, tmp_path):
    pauses = []
    with pytest.raises(StorageRefused, match=r"on node-a is not the folder.*s3://bucket/prefix"):
        assert_shared(config, "node-a", pause=pauses.append)
    assert len(pauses) == TRIES_MAX - 1
    assert not (tmp_path / "storage").exists(), "nothing is made there"


def test_object_storage_is_the_same_everywhere(machine):
    assert_shared(machine.config(storage_url="s3://bucket/prefix"), "node-a")
