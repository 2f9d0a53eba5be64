"""Snapshot → storage → snapshot, on a local folder."""

from __future__ import annotations

import json
import threading

import pytest
from safetensors.numpy import load_file

from orch_workers.checkpoint import (
    Catalog,
    Committed,
    Damaged,
    NothingRestorable,
    RestorePoint,
    SnapshotChanged,
    Storage,
    StorageUnavailable,
    commit,
    commit_step,
    find_and_restore,
    open_storage,
    restore,
    write_rank,
)
from orch_workers.checkpoint import (
    format as checkpoint_format,
)
from orch_workers.training.slots import Slot, SlotDamagedError
from support import snapshots

G1 = (1, 1)


@pytest.fixture
def catalog(tmp_path):
    return Catalog(open_storage(str(tmp_path / "storage")), "digits-1a2b")


def commit_at(catalog, tmp_path, step, *, generation=G1, seed=None) -> Committed:
    state = snapshots.state(step if seed is None else seed)
    return snapshots.commit_state(
        catalog, tmp_path / "slot", state, generation=generation, step=step, code_digest="c0de"
    )


def only(catalog, kind, suffix=""):
    [entry] = [e for e in catalog.storage.list(catalog.path(kind)) if e.path.endswith(suffix)]
    return catalog.storage.root / entry.path


def test_what_was_committed_comes_back_as_it_was(catalog, tmp_path):
    assert find_and_restore(catalog, 0, tmp_path / "restore") is None
    catalog.begin_generation(G1)
    saved = snapshots.state(3)
    slot = snapshots.make(tmp_path / "slot", saved, step=12)
    done = commit(catalog, slot, code_digest="c0de")
    assert (done.generation, done.step, done.already) == (G1, 12, False)

    found = find_and_restore(catalog, 0, tmp_path / "restore", world_size=1)
    assert found is not None
    assert found.point[:2] == (G1, 12)
    assert found.rejected == ()
    assert (found.header.generation, found.header.step) == (G1, 12)
    assert snapshots.arrays_in(found.path) == snapshots.arrays_of(saved)
    restored = Slot(found.path)
    assert restored.read()[1] == slot.read()[1]
    restored.close()
    slot.close()


def test_any_safetensors_library_reads_a_shard(catalog, tmp_path):
    catalog.begin_generation(G1)
    commit_at(catalog, tmp_path, 12, seed=3)
    found = load_file(only(catalog, "shards"))
    expected = snapshots.state(3).arrays
    assert {n for n in found if not n.startswith("~pad/")} == set(expected)
    for name, array in expected.items():
        assert (found[name] == array).all()
        assert found[name].dtype == array.dtype


def test_a_commit_repeated_is_the_same_commit(catalog, tmp_path):
    catalog.begin_generation(G1)
    first = commit_at(catalog, tmp_path, 5)
    again = commit_at(catalog, tmp_path, 5)
    assert again.already
    assert again.size_bytes == first.size_bytes
    assert len(catalog.restore_points()) == 1


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_a_commit_that_died_anywhere_is_finished_by_the_next(catalog, tmp_path, parts):
    catalog.begin_generation(G1)
    commit_at(catalog, tmp_path, 5)
    for kind in ("manifests", "ranks", "shards")[:parts]:
        only(catalog, kind).unlink()
    assert commit_at(catalog, tmp_path, 5).already is False
    assert find_and_restore(catalog, 0, tmp_path / "restore") is not None


def test_the_shard_of_an_abandoned_commit_is_not_replaced(catalog, tmp_path):
    catalog.begin_generation(G1)
    commit_at(catalog, tmp_path, 5, seed=1)
    only(catalog, "manifests").unlink()
    only(catalog, "ranks").unlink()
    left = only(catalog, "shards")
    before = left.read_bytes()
    commit_at(catalog, tmp_path, 5, seed=2)
    assert left.read_bytes() == before
    found = find_and_restore(catalog, 0, tmp_path / "restore")
    assert snapshots.arrays_in(found.path) == snapshots.arrays_of(snapshots.state(2))


def test_many_shards_are_one_snapshot(catalog, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint_format, "SHARD_BYTES_TARGET", 4096)
    monkeypatch.setattr(checkpoint_format, "DIGEST_CHUNK_BYTES", 1000)
    catalog.begin_generation(G1)
    commit_at(catalog, tmp_path, 5)
    assert len(catalog.storage.list(catalog.path("shards"))) > 1
    found = find_and_restore(catalog, 0, tmp_path / "restore")
    assert snapshots.arrays_in(found.path) == snapshots.arrays_of(snapshots.state(5))


def test_a_commit_that_fails_leaves_nobody_reading_the_slot(catalog, tmp_path, monkeypatch):
    """The caller gives the slot away after the error: shards under way are waited for, no other begins."""
    monkeypatch.setattr(checkpoint_format, "SHARD_BYTES_TARGET", 64)
    monkeypatch.setattr(catalog.storage, "writes_at_once", 2)
    catalog.begin_generation(G1)
    second_began, begun, under_way = threading.Event(), [], []
    create = Storage.create

    def failing(storage, path, data):
        if not path.endswith(".safetensors"):
            return create(storage, path, data)
        begun.append(path)
        if len(begun) == 1:
            assert second_began.wait(20)
            raise StorageUnavailable("no room")
        second_began.set()
        under_way.append(path)
        made = create(storage, path, data)
        under_way.remove(path)
        return made

    monkeypatch.setattr(Storage, "create", failing)
    with pytest.raises(StorageUnavailable, match="no room"):
        commit_at(catalog, tmp_path, 5)
    assert under_way == []
    monkeypatch.setattr(Storage, "create", create)
    assert commit_at(catalog, tmp_path, 5).already is False


def test_a_shard_too_large_to_be_fenced_has_a_name_of_its_own(catalog, tmp_path, monkeypatch):
    """Two writers of the same step then never write to the same name."""
    monkeypatch.setattr(catalog.storage, "fenced_bytes_max", 1000)
    catalog.begin_generation(G1)
    for _ in range(2):
        commit_at(catalog, tmp_path, 5)
        for kind in ("manifests", "ranks"):
            only(catalog, kind).unlink()
    commit_at(catalog, tmp_path, 5)
    assert len({entry.path for entry in catalog.storage.list(catalog.path("shards"))}) == 3
    found = find_and_restore(catalog, 0, tmp_path / "restore")
    assert snapshots.arrays_in(found.path) == snapshots.arrays_of(snapshots.state(5))


def test_ranks_write_their_parts_and_the_leader_commits(catalog, tmp_path):
    catalog.begin_generation(G1)
    for rank in range(3):
        slot = snapshots.make(tmp_path / "slot", snapshots.state(rank), step=7)
        write_rank(catalog, slot, rank=rank, world_size=3)
        slot.close()
        assert catalog.restore_points() == []
    commit_step(catalog, G1, 7, world_size=3)
    for rank in range(3):
        found = find_and_restore(catalog, rank, tmp_path / "restore", world_size=3)
        assert snapshots.arrays_in(found.path) == snapshots.arrays_of(snapshots.state(rank))
    found = find_and_restore(catalog, 4, tmp_path / "restore", world_size=5)
    assert snapshots.arrays_in(found.path) == snapshots.arrays_of(snapshots.state(1)), (
        "of its number modulo theirs"
    )


def test_a_state_without_tensors(catalog, tmp_path):
    catalog.begin_generation(G1)
    saved = snapshots.State({}, tree={"only": "values"})
    slot = snapshots.make(tmp_path / "slot", saved, step=1)
    commit(catalog, slot)
    slot.close()
    found = find_and_restore(catalog, 0, tmp_path / "restore")
    assert Slot(found.path).read()[1]["tree"] == {"only": "values"}


def test_what_safetensors_cannot_hold_is_bytes_there_and_itself_again_here(catalog, tmp_path):
    import numpy as np

    catalog.begin_generation(G1)
    saved = snapshots.State({"c": np.array([[1 + 2j, 3j]]), "d": np.array([1j], dtype=np.complex64)})
    slot = snapshots.make(tmp_path / "slot", saved, step=1)
    commit(catalog, slot)
    slot.close()
    assert load_file(only(catalog, "shards"))["c"].dtype == np.uint8
    found = find_and_restore(catalog, 0, tmp_path / "restore")
    assert snapshots.arrays_in(found.path) == snapshots.arrays_of(saved)


def test_a_torn_slot_is_never_committed(catalog, tmp_path):
    catalog.begin_generation(G1)
    slot = snapshots.make(tmp_path / "slot", snapshots.state(), step=5)
    snapshots.fill(tmp_path / "slot", snapshots.state(), generation=G1, step=6, torn=True)
    with pytest.raises(SlotDamagedError, match="never finished"):
        commit(catalog, slot)
    slot.close()
    assert catalog.storage.list(catalog.path("shards")) == []


def test_a_slot_given_away_during_the_commit_is_not_committed(catalog, tmp_path, monkeypatch):
    catalog.begin_generation(G1)
    slot = snapshots.make(tmp_path / "slot", snapshots.state(), step=5)
    create = Storage.create

    def and_then_the_slot_changes(storage, path, data):
        made = create(storage, path, data)
        if path.endswith(".safetensors"):
            snapshots.fill(tmp_path / "slot", snapshots.state(9), generation=G1, step=6)
        return made

    monkeypatch.setattr(Storage, "create", and_then_the_slot_changes)
    with pytest.raises(SnapshotChanged):
        commit(catalog, slot)
    slot.close()
    assert catalog.restore_points() == []


def flip(path, at=-10):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def lie(path, change):
    document = json.loads(path.read_text())
    change(document)
    document.pop("digest", None)  # whoever lies, lies about that too
    path.write_text(json.dumps(document))


def damages():
    """name → (what is done to the newest checkpoint, what the reason says)."""
    return {
        "flipped byte of a tensor": (lambda f: flip(f["shard"], 6000), "model.weight.*do not match"),
        "flipped byte of a header": (lambda f: flip(f["shard"], 40), "header does not match"),
        "truncated shard": (
            lambda f: f["shard"].write_bytes(f["shard"].read_bytes()[:-1]),
            "bytes instead of",
        ),
        "missing shard": (lambda f: f["shard"].unlink(), "0-0.safetensors is missing"),
        "missing rank": (lambda f: f["rank"].unlink(), "0.json is missing"),
        "rank of other content": (lambda f: flip(f["rank"]), "not the one that was committed"),
        "manifest is no JSON": (lambda f: f["manifest"].write_text("{"), "no JSON document"),
        "manifest is a list": (lambda f: f["manifest"].write_text("[]"), "manifest"),
        "manifest nested without end": (
            lambda f: f["manifest"].write_text("[" * 200_000),
            "no JSON document",
        ),
        "another job's": (
            lambda f: lie(f["manifest"], lambda d: d.update(job="other")),
            "belongs to job 'other'",
        ),
        "another step's": (lambda f: lie(f["manifest"], lambda d: d.update(step=4)), "step 4"),
        "a newer format": (lambda f: lie(f["manifest"], lambda d: d.update(version=3)), "format version 3"),
        "a rank too few": (lambda f: lie(f["manifest"], lambda d: d.update(ranks=[])), r"ranks \[\] of 1"),
        "elsewhere": (
            lambda f: lie(f["manifest"], lambda d: d["ranks"][0].update(path="../other/0.json")),
            "is said to be in",
        ),
    }


@pytest.mark.parametrize("what", damages())
def test_a_damaged_checkpoint_is_quarantined_and_the_next_older_used(catalog, tmp_path, what):
    damage, reason = damages()[what]
    catalog.begin_generation(G1)
    commit_at(catalog, tmp_path, 5)
    commit_at(catalog, tmp_path, 10)
    step = "000000000010"
    damage(
        {
            "shard": only(catalog, f"shards/000001.000001/{step}"),
            "rank": only(catalog, f"ranks/000001.000001/{step}"),
            "manifest": only(catalog, "manifests", f"{step}.json"),
        }
    )
    found = find_and_restore(catalog, 0, tmp_path / "restore")
    assert found.point.step == 5
    assert snapshots.arrays_in(found.path) == snapshots.arrays_of(snapshots.state(5))
    [rejected] = found.rejected
    assert rejected[:2] == (G1, 10)
    [(point, marked)] = catalog.quarantined().items()
    assert point[:2] == (G1, 10)
    assert marked == rejected.reason
    with pytest.raises(Damaged, match=reason):
        restore(catalog, RestorePoint(G1, 10), 0, tmp_path / "other")
    assert not (tmp_path / "other").exists()
    # Marked once, it is not even looked at again.
    assert find_and_restore(catalog, 0, tmp_path / "restore").rejected == ()


def test_all_damaged_is_said_and_never_a_start_from_scratch(catalog, tmp_path):
    catalog.begin_generation(G1)
    for step in (5, 10):
        commit_at(catalog, tmp_path, step)
    for shard in catalog.storage.list(catalog.path("shards")):
        (catalog.storage.root / shard.path).unlink()
    for _ in range(2):  # the second time both are in quarantine already
        with pytest.raises(NothingRestorable) as caught:
            find_and_restore(catalog, 0, tmp_path / "restore")
        assert [r.step for r in caught.value.rejected] == [10, 5]
        assert "is missing" in str(caught.value)


def test_checkpoints_without_a_generations_record_are_no_reason_to_start_over(catalog, tmp_path):
    catalog.begin_generation(G1)
    commit_at(catalog, tmp_path, 5)
    only(catalog, "generations").unlink()
    with pytest.raises(NothingRestorable, match="no generation's record"):
        find_and_restore(catalog, 0, tmp_path / "restore")


def test_a_generations_record_that_does_not_read_is_no_reason_either(catalog, tmp_path):
    catalog.begin_generation(G1)
    commit_at(catalog, tmp_path, 5)
    catalog.begin_generation((2, 1), G1, 5)
    newest = catalog.storage.root / catalog.generation_path((2, 1))
    newest.write_text("{}")
    with pytest.raises(NothingRestorable, match="does not read") as caught:
        find_and_restore(catalog, 0, tmp_path / "restore")
    assert [(r.step, r.reason) for r in caught.value.rejected] == [(5, "not known to lie on the chain")]


def test_what_a_generation_committed_itself_is_restored_although_its_record_does_not_read(catalog, tmp_path):
    catalog.begin_generation(G1)
    commit_at(catalog, tmp_path, 5)
    only(catalog, "generations").write_text("{}")
    assert find_and_restore(catalog, 0, tmp_path / "restore").point.step == 5
    assert "no generation's record" in catalog.chain().damage


def test_an_empty_storage_of_a_job_that_has_committed_is_the_wrong_one(catalog, tmp_path):
    with pytest.raises(NothingRestorable, match="is it the right storage"):
        find_and_restore(catalog, 0, tmp_path / "restore", committed_before=True)


def test_memory_comes_before_storage_at_equal_step(catalog, tmp_path):
    catalog.begin_generation(G1)
    commit_at(catalog, tmp_path, 5)
    assert find_and_restore(catalog, 0, tmp_path / "restore", newer_than=5) is None
    assert find_and_restore(catalog, 0, tmp_path / "restore", newer_than=4).point.step == 5


def test_bytes_read_wrong_once_are_read_again(catalog, tmp_path, monkeypatch):
    from orch_workers.checkpoint.local import LocalStorage

    catalog.begin_generation(G1)
    commit_at(catalog, tmp_path, 5)
    read_into, wrong = LocalStorage.read_into, []

    def once_wrong(storage, path, start, view):
        count = read_into(storage, path, start, view)
        if not wrong:
            wrong.append(view[100])
            view[100] ^= 1
        return count

    monkeypatch.setattr(LocalStorage, "read_into", once_wrong)
    found = find_and_restore(catalog, 0, tmp_path / "restore")
    assert wrong
    assert found.rejected == ()
    assert snapshots.arrays_in(found.path) == snapshots.arrays_of(snapshots.state(5))
