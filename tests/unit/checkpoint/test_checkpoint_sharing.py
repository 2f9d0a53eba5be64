"""What is the same on several ranks is written once, what differs by each; and both are read as they were."""

from __future__ import annotations

import json

import numpy as np
import pytest

from orch_workers.checkpoint import Catalog, Damaged, commit_step, find_and_restore, open_storage, restore
from orch_workers.checkpoint.content import Content
from orch_workers.checkpoint.copying import copy
from orch_workers.checkpoint.errors import NotFound
from orch_workers.checkpoint.verifying import verify
from orch_workers.checkpoint.whole import whole_tensors
from orch_workers.training.snapshot import Adapters, Stored
from support.shared_parts import Ranks

G1 = (1, 1)
ROWS = 64
WEIGHT_BYTES = ROWS * 1024


def state(rank: int) -> dict:
    """As of a DDP job: one model, and what only looks the same."""
    rng = np.random.default_rng(7)
    weights = {f"layer {n}": rng.standard_normal((ROWS, 128)) for n in range(6)}
    return {
        "model": {**weights, "running mean": np.full(50, float(rank)), "batches": np.array(12)},
        "random": {"state": np.arange(rank, rank + 600)},
    }


@pytest.fixture
def catalog(tmp_path):
    found = Catalog(open_storage(str(tmp_path / "storage")), "shared")
    found.begin_generation(G1)
    return found


@pytest.fixture
def ranks(catalog, tmp_path):
    return Ranks(catalog, tmp_path)


def restored(catalog, rank, folder) -> dict:
    found = find_and_restore(catalog, rank, folder / f"restored-{rank}", world_size=2)
    assert found is not None
    assert not found.rejected
    stored = Stored(found.path, Adapters().codecs())
    parts = {name: stored.part(name) for name in ("model", "random")}
    stored.close()
    return parts


def assert_same(found: dict, wanted: dict) -> None:
    for part, arrays in wanted.items():
        assert list(found[part]) == list(arrays)
        for name, array in arrays.items():
            assert found[part][name].dtype == array.dtype
            assert (found[part][name] == array).all(), name


def rank_document(catalog, rank, step=5) -> dict:
    path = catalog.storage.root / catalog.rank_path(G1, step, rank)
    return json.loads(path.read_text())


def test_the_same_is_written_once_and_what_differs_by_each(catalog, ranks, tmp_path):
    ranks.save(state, G1, 5)
    written = [{t["name"] for t in rank_document(catalog, rank)["tensors"]} for rank in (0, 1)]
    assert written[0] & written[1] == {"model.running mean", "random.state"}
    assert {name for name in written[0] | written[1] if "layer" in name} == {
        f"model.layer {n}" for n in range(6)
    }
    sizes = [rank_document(catalog, rank)["data_bytes"] for rank in (0, 1)]
    assert abs(sizes[0] - sizes[1]) < WEIGHT_BYTES
    for rank in (0, 1):
        assert_same(restored(catalog, rank, tmp_path), state(rank))


def test_a_rank_that_hears_nothing_writes_all_it_holds(catalog, ranks, tmp_path):
    ranks.lose = lambda message: True
    slots = [ranks.slot(rank, state(rank), G1, 5) for rank in (0, 1)]
    for rank in (0, 1):
        ranks.write(rank, slots[rank], G1, 5, go_on=lambda waited_s: False)
    commit_step(catalog, G1, 5, world_size=2)
    assert [rank_document(catalog, rank)["version"] for rank in (0, 1)] == [1, 1], "any reader reads it"
    for rank in (0, 1):
        assert_same(restored(catalog, rank, tmp_path), state(rank))


def test_lost_messages_are_said_again(catalog, ranks, tmp_path):
    lost = []
    ranks.lose = lambda message: len(lost) < 2 and lost.append(message) is None
    ranks.save(state, G1, 5)
    assert len(lost) == 2
    assert rank_document(catalog, 0)["shared"]


def test_one_alone_writes_all_and_the_other_what_that_leaves(catalog, ranks, tmp_path):
    """The second rank finds the first's rows, though nobody waits for its own any more."""
    slots = [ranks.slot(rank, state(rank), G1, 5) for rank in (0, 1)]
    ranks.write(0, slots[0], G1, 5, go_on=lambda waited_s: False)
    ranks.write(1, slots[1], G1, 5)
    commit_step(catalog, G1, 5, world_size=2)
    assert not rank_document(catalog, 0)["shared"]
    assert rank_document(catalog, 1)["shared"]
    for rank in (0, 1):
        assert_same(restored(catalog, rank, tmp_path), state(rank))


def test_a_part_that_is_there_counts_and_the_others_still_hear_what_it_is(catalog, ranks):
    slots = [ranks.slot(rank, state(rank), G1, 5) for rank in (0, 1)]
    ranks.write(1, slots[1], G1, 5, go_on=lambda waited_s: False)
    fresh = Ranks(catalog, ranks.folder)  # both agents anew, as after a change of the leader
    fresh.write(1, slots[1], G1, 5, go_on=lambda waited_s: False)
    fresh.write(0, slots[0], G1, 5)
    commit_step(catalog, G1, 5, world_size=2)
    assert rank_document(catalog, 0)["shared"]


def test_what_another_rank_has_not_written_is_no_checkpoint(catalog, ranks):
    """Proved at the commit, whoever has said it."""
    ranks.lose = lambda message: True
    slots = [ranks.slot(rank, state(rank), G1, 5) for rank in (0, 1)]
    ranks.sharing[0].wait = lambda where, rows, go_on: (1,) * len(rows)  # type: ignore[method-assign]
    ranks.write(0, slots[0], G1, 5)
    with pytest.raises(NotFound):
        commit_step(catalog, G1, 5, world_size=2)
    ranks.write(1, slots[1], G1, 5, go_on=lambda waited_s: False)
    with pytest.raises(
        Damaged, match=r"'model.running mean' is said to be written by rank 1, which has another one"
    ):
        commit_step(catalog, G1, 5, world_size=2)
    assert not catalog.committed()


def test_parts_of_another_number_of_ranks_are_no_checkpoint(catalog, ranks):
    slots = [ranks.slot(rank, state(rank), G1, 5) for rank in (0, 1)]
    ranks.write(0, slots[0], G1, 5, go_on=lambda waited_s: False)
    with pytest.raises(Damaged, match="a part of 2 ranks' step"):
        commit_step(catalog, G1, 5, world_size=1)


def test_a_damaged_shard_is_found_by_each_rank_that_needs_it(catalog, ranks, tmp_path):
    ranks.save(state, G1, 5)
    (shard,) = (catalog.storage.root / "shared/shards").rglob("0-*.safetensors")
    common = next(t for t in rank_document(catalog, 0)["tensors"] if "layer" in t["name"])
    data = bytearray(shard.read_bytes())
    data[rank_document(catalog, 0)["shards"][0]["data_offset"] + common["start"] + 1000] ^= 1
    shard.write_bytes(data)
    point = catalog.restore_points()[0]
    for rank in (0, 1):
        with pytest.raises(Damaged):
            restore(catalog, point, rank, tmp_path / f"damaged-{rank}", world_size=2)
        assert not (tmp_path / f"damaged-{rank}").exists()
    assert len(verify(catalog, point, deep=True).problems) == 1
    shard.unlink()
    with pytest.raises(Damaged, match="missing"):
        restore(catalog, point, 1, tmp_path / "missing", world_size=2)


def test_what_is_empty_hides_no_damage_of_what_begins_at_the_same_place(catalog, ranks):
    ranks.save(lambda rank: {"model": {"empty": np.zeros(0), "mean": np.full(500, float(rank))}}, G1, 5)
    point = catalog.restore_points()[0]
    for rank in (0, 1):
        (mean,) = (t for t in rank_document(catalog, rank)["tensors"] if t["name"] == "model.mean")
        path = catalog.storage.root / "shared" / rank_document(catalog, rank)["shards"][0]["path"]
        data = bytearray(path.read_bytes())
        data[rank_document(catalog, rank)["shards"][0]["data_offset"] + mean["start"]] ^= 1
        path.write_bytes(data)
        assert len(verify(catalog, point, deep=True).problems) == rank + 1


def test_it_is_looked_at_and_copied_as_any_other(catalog, ranks, tmp_path):
    ranks.save(state, G1, 5)
    point = catalog.restore_points()[0]
    content = Content.open(catalog, point)
    labels = [ref.label for ref in content.refs()]
    assert len(labels) == len(set(labels)) == 18
    assert verify(catalog, point, deep=True).problems == ()
    wholes = whole_tensors(content, {"model.layer 5", "model.running mean"})
    assert bytes(wholes["model.layer 5"].read(content)) == state(0)["model"]["layer 5"].tobytes()
    assert bytes(wholes["model.running mean"].read(content)) == state(0)["model"]["running mean"].tobytes()
    target = Catalog(open_storage(str(tmp_path / "copy")), "shared")
    copy(catalog, point, target)
    for rank in (0, 1):
        assert_same(restored(target, rank, tmp_path), state(rank))


def test_what_ranks_share_is_a_third_of_the_bytes_on_three_of_them(catalog, tmp_path):
    ranks = Ranks(catalog, tmp_path, size=3)
    ranks.save(state, G1, 5)
    size_bytes = catalog.manifest(catalog.restore_points()[0]).size_bytes
    assert 6 * WEIGHT_BYTES < size_bytes < 6 * WEIGHT_BYTES * 1.2
