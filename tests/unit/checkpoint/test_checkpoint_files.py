"""Checkpoints of `kind: files` in storage: shared bytes, damage, removal, copies."""

from __future__ import annotations

import os

import pytest

from orch_policies.retention import Rules
from orch_workers.checkpoint import Catalog, CheckpointError, Damaged, blobs, find_and_restore
from orch_workers.checkpoint.copying import copy
from orch_workers.checkpoint.local import LocalStorage
from orch_workers.checkpoint.verifying import verify
from orch_workers.files import taking
from orch_workers.files.storing import commit
from support.file_versions import G1, JOB, Scene


@pytest.fixture
def scene(tmp_path):
    made = Scene(tmp_path)
    made.catalog.begin_generation(G1)
    return made


def test_what_has_not_changed_is_not_sent_again(scene):
    scene.write(a=b"one" * 100, b=b"two" * 100)
    scene.commit(1)
    before = scene.blobs()
    scene.write(a=b"three" * 100)
    point = scene.commit(2)
    assert len(set(scene.blobs()) - set(before)) == 1
    assert scene.fetched(point) == {"a": b"three" * 100, "b": b"two" * 100}


def test_a_large_file_is_stored_in_parts(scene, monkeypatch):
    monkeypatch.setattr(taking, "PART_BYTES", 1000)
    content = bytes(range(256)) * 20
    scene.write(big=content, empty=b"")
    point = scene.commit(1)
    assert len(scene.blobs()) == 6
    scene.write(big=content[:-1] + b"x")
    assert scene.fetched(scene.commit(2))["big"] == content[:-1] + b"x"
    assert len(scene.blobs()) == 7
    assert scene.fetched(point) == {"big": content, "empty": b""}


def test_a_commit_may_be_repeated(scene):
    scene.write(a=b"one")
    snapshot = scene.take(1)
    version = scene.local.version(snapshot)
    for _ in range(2):
        commit(scene.catalog, version, snapshot, code_digest=None, distrusted=set())
    assert len(scene.catalog.committed()) == 1


def test_blobs_go_with_the_last_checkpoint_that_names_them(scene):
    scene.write(a=b"one", b=b"shared")
    first = scene.commit(1)
    scene.write(a=b"two")
    second = scene.commit(2)
    assert len(scene.blobs()) == 3
    scene.catalog.remove(first)
    assert len(scene.blobs()) == 2
    assert scene.fetched(second) == {"a": b"two", "b": b"shared"}
    scene.catalog.remove(second)
    assert scene.blobs() == []


def test_retention_removes_files_as_it_removes_states(scene):
    for number in range(1, 6):
        scene.write(a=str(number).encode())
        scene.commit(number)
    scene.catalog.retain(Rules(last=2))
    assert [point.step for point in scene.catalog.committed()] == [5, 4]
    assert len(scene.blobs()) == 2


def test_leftovers_are_swept_when_no_commit_can_need_them(scene, monkeypatch):
    scene.write(a=b"one")
    scene.commit(1)
    scene.catalog.storage.create(scene.catalog.path("blobs", f"{'0' * 32}-3"), b"old")
    scene.catalog.sweep(by=G1)
    assert len(scene.blobs()) == 2
    monkeypatch.setattr(blobs, "LEFTOVER_AGE_S", -1.0)
    scene.catalog.sweep(by=G1)
    assert len(scene.blobs()) == 1


def test_a_damaged_blob_is_found_and_sent_again(scene):
    scene.write(a=b"one", b=b"other")
    point = scene.commit(1)
    assert verify(scene.catalog, point, deep=True).is_good
    name = next(name for name in scene.blobs() if name.endswith("-3"))
    path = scene.folder / "storage" / JOB / "blobs" / name
    path.chmod(0o600)
    path.write_bytes(b"onE")
    assert verify(scene.catalog, point).is_good
    assert not verify(scene.catalog, point, deep=True).is_good
    with pytest.raises(Damaged):
        scene.fetched(point)
    assert scene.distrusted == {name}
    scene.write(c=b"new")
    assert scene.fetched(scene.commit(2)) == {"a": b"one", "b": b"other", "c": b"new"}


def test_a_blob_that_goes_while_it_is_named_is_sent_again(scene, monkeypatch):
    scene.write(a=b"one")
    scene.commit(1)
    scene.write(b=b"new")
    real = scene.catalog.storage.create

    def create(path, data):
        if "/manifests/" in path:
            scene.catalog.storage.delete(scene.catalog.path("blobs", scene.blobs()[0]))
        return real(path, data)

    monkeypatch.setattr(scene.catalog.storage, "create", create)
    point = scene.commit(2)
    assert scene.fetched(point) == {"a": b"one", "b": b"new"}


def test_a_missing_blob_is_a_missing_file(scene):
    scene.write(a=b"one")
    point = scene.commit(1)
    scene.catalog.storage.delete(scene.catalog.path("blobs", scene.blobs()[0]))
    found = verify(scene.catalog, point)
    assert not found.is_good
    assert "is missing" in found.problems[0]
    assert found.files == 1
    with pytest.raises(Damaged):
        scene.fetched(point)


def test_a_copy_is_a_checkpoint_of_its_own(scene, tmp_path):
    scene.write(a=b"one", b=b"two")
    point = scene.commit(1)
    target = Catalog(LocalStorage(tmp_path / "archive"), JOB)
    done = copy(scene.catalog, point, target)
    assert not done.already
    assert verify(target, point, deep=True).is_good
    scene.catalog = target
    assert scene.fetched(point) == {"a": b"one", "b": b"two"}


def test_links_and_permissions_are_kept(scene):
    scene.write(model=b"m")
    (scene.work / "model").chmod(0o640)
    (scene.work / "last").symlink_to("model")
    (scene.work / "outside").symlink_to("/etc/passwd")
    snapshot = scene.take(1)
    (scene.work / "model").write_bytes(b"changed")
    (scene.work / "last").unlink()
    (scene.work / "half").write_bytes(b"left by a start")
    aside = scene.collector.put(snapshot, "000001.000002")
    assert aside == ["half"]
    assert (scene.work / "model").read_bytes() == b"m"
    assert (scene.work / "model").stat().st_mode & 0o777 == 0o640
    assert (scene.work / "last").readlink().name == "model"
    assert (scene.work / "outside").is_symlink()
    assert (scene.folder / "aside/000001.000002/half").read_bytes() == b"left by a start"


def test_a_state_and_files_are_not_taken_for_each_other(scene, tmp_path):
    scene.write(a=b"one")
    scene.commit(1)
    with pytest.raises(CheckpointError, match="no state that could be loaded"):
        find_and_restore(scene.catalog, 0, tmp_path / "slot")
    assert scene.catalog.quarantined() == {}


def test_what_changes_while_it_is_copied_is_not_taken(scene, monkeypatch):
    scene.write(a=b"one", b=b"two")
    real, look = taking.copy, scene.collector.looker.look()

    def copy_and_write(source, target):
        parts = real(source, target)
        (scene.work / "a").write_bytes(b"changed meanwhile")
        return parts

    monkeypatch.setattr(taking, "copy", copy_and_write)
    outcome = scene.collector.take(look, G1, 1, {})
    assert (outcome.snapshot, outcome.problem) == (None, "")
    assert list(scene.folder.glob("local/version-*")) == []


def test_what_somebody_has_open_for_writing_is_not_taken(scene):
    scene.write(a=b"one", b=b"two")
    look = scene.collector.looker.look()
    scene.collector.follow(lambda: [os.getpid()])
    with (scene.work / "a").open("r+b"):
        assert scene.collector.looker.look().writing == {"a"}
        assert scene.collector.take(look, G1, 1, {}).snapshot is None
    assert scene.collector.take(look, G1, 1, {}).snapshot is not None


def test_a_copy_is_no_link_to_the_script_s_own_file(scene):
    scene.write(a=b"one")
    snapshot = scene.take(1)
    with (scene.work / "a").open("r+b") as file:
        file.write(b"ONE")
    assert scene.local.file_of(snapshot, 0).read_bytes() == b"one"
