"""A checkpoint in another storage is the same one, restorable there, and nothing half is ever a checkpoint."""

from __future__ import annotations

import numpy as np
import pytest

from orch_workers.checkpoint import (
    AlreadyExists,
    Catalog,
    Checkpointer,
    CheckpointError,
    Damaged,
    StorageUnavailable,
    open_storage,
)
from orch_workers.checkpoint.copying import bytes_of, copy
from orch_workers.checkpoint.verifying import verify
from support import saved


def state(step):
    return {"weights": np.full((50, 3), step, np.float32), "step": step}


@pytest.fixture
def source(tmp_path) -> Catalog:
    return saved.save(tmp_path / "source", {step: state(step) for step in (10, 20, 30)})


@pytest.fixture
def target(tmp_path) -> Catalog:
    return Catalog(open_storage(str(tmp_path / "target")), saved.NAME)


def contents(catalog):
    return {e.path: catalog.storage.read(e.path) for e in catalog.storage.list(catalog.job_id)}


def test_a_copy_is_restored_by_itself(source, target, tmp_path):
    moved = []
    done = copy(source, saved.point(source, 20), target, moved=moved.append)
    assert (done.already, done.there_bytes) == (False, 0)
    assert sum(moved) == bytes_of(source, saved.point(source, 20))
    with Checkpointer(tmp_path / "target" / saved.NAME) as checkpoints:
        found = checkpoints.restore()
    assert found.step == 20
    np.testing.assert_array_equal(found.values["weights"], state(20)["weights"])
    assert verify(target, saved.point(target, 20), deep=True).is_good
    there, here = contents(target), contents(source)
    assert there == {path: here[path] for path in there}, "byte for byte"


def test_once_more_is_the_same_copy(source, target):
    copy(source, saved.point(source, 20), target)
    before = contents(target)
    done = copy(source, saved.point(source, 20), target)
    assert done.already
    assert done.there_bytes > 0
    assert contents(target) == before


def test_a_copy_that_broke_off_does_not_exist_and_is_finished(source, target, monkeypatch):
    """Each try writes one more object than the one before, and then storage is away."""
    point = saved.point(source, 20)
    create = type(target.storage).create
    written: list[str] = []
    left = [0]

    def breaking(storage, path, data):
        if storage is target.storage and not storage.exists(path):
            if not left[0]:
                raise StorageUnavailable("away")
            left[0] -= 1
            written.append(path.split("/")[1])
        return create(storage, path, data)

    monkeypatch.setattr(type(target.storage), "create", breaking)
    for expected in ("generations", "shards", "ranks", "manifests"):
        with pytest.raises(StorageUnavailable):
            copy(source, point, target)
        assert target.committed() == []
        left[0] = 1
        if expected == "manifests":
            assert not copy(source, point, target).already
        else:
            with pytest.raises(StorageUnavailable):
                copy(source, point, target)
        assert written.pop() == expected
    assert [found.step for found in target.restore_points()] == [20]


def test_several_checkpoints_of_a_chain_stand_side_by_side(source, target, tmp_path):
    with Checkpointer(tmp_path / "source" / saved.NAME, keep=100) as checkpoints:
        checkpoints.restore(step=20)
        checkpoints.save(40, state(40))
    for step in (10, 40, 20):
        copy(source, saved.point(source, step), target)
    assert [found.step for found in target.restore_points()] == [40, 20, 10]


def test_what_could_not_be_restored_there_is_not_copied_there(source, target, tmp_path):
    source.pin(saved.point(source, 30))
    with Checkpointer(tmp_path / "source" / saved.NAME, keep=100) as checkpoints:
        checkpoints.restore(step=20)
        checkpoints.save(40, state(40))
    copy(source, saved.point(source, 40), target)
    with pytest.raises(CheckpointError, match="newer generation"):
        copy(source, saved.point(source, 30), target)
    assert [found.step for found in target.committed()] == [40]
    other = Catalog(open_storage(str(tmp_path / "other")), saved.NAME)
    copy(source, saved.point(source, 30), other)
    with pytest.raises(CheckpointError, match="could not be restored any more"):
        copy(source, saved.point(source, 40), other)
    assert [found.step for found in other.restore_points()] == [30]


@pytest.mark.parametrize("what", saved.damages())
def test_what_is_damaged_is_not_copied(source, target, what):
    damage, _, _ = saved.damages()[what]
    point = saved.point(source, 20)
    damage(source, 20)
    with pytest.raises(Damaged):
        copy(source, point, target)
    assert target.committed() == []


def test_what_is_in_quarantine_is_not_copied(source, target):
    source.quarantine(saved.point(source, 20), "a test says so")
    with pytest.raises(Damaged, match="a test says so"):
        copy(source, saved.point(source, 20), target)


def test_something_else_under_the_same_name_is_left_alone(source, target):
    shard = saved.file(source, "shards", 20)
    path = str(shard.relative_to(source.storage.root))
    size = shard.stat().st_size
    target.storage.create(path, bytes(size))
    with pytest.raises(Damaged, match="not this checkpoint's"):
        copy(source, saved.point(source, 20), target)
    assert target.storage.read(path) == bytes(size)
    with pytest.raises(AlreadyExists):
        target.storage.create(path, b"other")


def test_another_jobs_checkpoint_is_refused(source, tmp_path):
    with pytest.raises(ValueError, match="cannot become one of other"):
        copy(source, saved.point(source, 20), Catalog(open_storage(str(tmp_path)), "other"))
