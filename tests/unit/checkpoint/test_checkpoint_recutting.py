"""Divided tensors on another number of ranks, or divided in another way: every element is where it belongs, and only
what is needed is read.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from orch_workers.checkpoint import Catalog, Damaged, commit_step, open_storage, restore, write_rank
from orch_workers.checkpoint.format import DIGEST_CHUNK_BYTES
from orch_workers.checkpoint.recutting import is_divided_so, places_of
from orch_workers.training.slots import Slot, aligned

G1, STEP = (1, 1), 7
SHAPE = (12, 10, 3)


def blocks(shape, grid):
    """(offsets, shape) of each rank's block, as `torch.chunk` cuts along each dimension; some may be empty."""
    cuts = []
    for length, parts in zip(shape, grid, strict=True):
        size = -(-length // parts)
        edges = [min(number * size, length) for number in range(parts + 1)]
        cuts.append([(a, b - a) for a, b in itertools.pairwise(edges)])
    return [tuple(zip(*one, strict=True)) for one in itertools.product(*cuts)]


def array_of(shape, dtype: type = np.float32):
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


class Saved:
    """One step: `arrays` divided over ranks as `grid` says, and beside them what each rank has of its own."""

    def __init__(self, folder: Path, arrays: dict, grid: tuple[int, ...]) -> None:
        self.folder, self.arrays = folder, arrays
        self.catalog = Catalog(open_storage(str(folder / "storage")), "divided")
        self.catalog.begin_generation(G1)
        self.size = int(np.prod(grid))
        for rank in range(self.size):
            pieces = {"own": (np.full(4, rank), None), "same": (np.arange(6), None)}
            for name, array in arrays.items():
                offsets, shape = blocks(array.shape, grid)[rank]
                pieces[name] = (cut(array, offsets, shape), (array.shape, offsets))
            slot = Slot(str(make_slot(folder / f"slot-{rank}", pieces)))
            write_rank(self.catalog, slot, rank=rank, world_size=self.size)
            slot.close()
        commit_step(self.catalog, G1, STEP, world_size=self.size)

    def onto(self, rank: int, grid: tuple[int, ...], *, told: bool = True):
        """What rank `rank` finds in its slot, by name; and the whole of its description."""
        size = int(np.prod(grid))
        places = []
        for name, array in self.arrays.items() if told else ():
            offsets, shape = blocks(array.shape, grid)[rank]
            places.append({"entry": name, "global_shape": array.shape, "offsets": offsets, "shape": shape})
        point = self.catalog.restore_points()[0]
        target = self.folder / f"restored-{rank}"
        restore(self.catalog, point, rank, target, world_size=size, places=places_of(places))
        slot = Slot(str(target))
        header, meta = slot.read()
        data = bytes(slot.data()[: header.data_bytes])
        slot.close()
        assert is_divided_so(str(target), places)
        found = {}
        for entry in meta["entries"]:
            raw = data[entry["offset"] : entry["offset"] + entry["size_bytes"]]
            kind = {"F32": np.float32, "I64": np.int64}[entry["dtype"]]
            found[entry["name"]] = np.frombuffer(raw, kind).reshape(entry["shape"])
        return found, meta


def cut(array, offsets, shape):
    return np.ascontiguousarray(array[tuple(slice(at, at + n) for at, n in zip(offsets, shape, strict=True))])


def make_slot(path: Path, pieces: dict) -> Path:
    entries, end, tree = [], 0, {}
    for name, (array, whole) in pieces.items():
        dtype = {"float32": "F32", "int64": "I64"}[str(array.dtype)]
        entry = {"name": name, "dtype": dtype, "shape": list(array.shape), "offset": aligned(end)}
        entry["size_bytes"] = array.nbytes
        tree[name] = {"~": "tensor", "entry": name}
        if whole is not None:
            entry |= {"global_shape": list(whole[0]), "offsets": list(whole[1])}
            tree[name]["sharded"] = True
        entries.append(entry)
        end = entry["offset"] + array.nbytes
    Slot.create(str(path), end + 100_000)
    slot = Slot(str(path), writable=True)
    slot.begin(G1, STEP)
    for entry, (array, _) in zip(entries, pieces.values(), strict=True):
        slot.data()[entry["offset"] : entry["offset"] + array.nbytes] = array.tobytes()
    meta = {"tree": tree, "entries": entries, "step": STEP, "epoch": 0, "kind": "state", "frameworks": {}}
    slot.finish(G1, STEP, end, meta)
    slot.close()
    return path


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((2, 1, 1), (3, 1, 1)),
        ((4, 1, 1), (2, 1, 1)),
        ((2, 1, 1), (1, 4, 1)),
        ((1, 3, 1), (5, 1, 1)),
        ((2, 2, 1), (1, 1, 3)),
        ((7, 1, 1), (2, 3, 1)),
        ((2, 1, 1), (1, 1, 1)),
        ((2, 1, 1), (2, 1, 1)),
    ],
    ids=str,
)
def test_every_rank_gets_its_block(tmp_path, before, after):
    arrays = {"weight": array_of(SHAPE), "count": array_of((7, 4, 2), np.int64)}
    saved = Saved(tmp_path, arrays, before)
    for rank in range(int(np.prod(after))):
        found, meta = saved.onto(rank, after)
        for name, array in arrays.items():
            offsets, shape = blocks(array.shape, after)[rank]
            assert (found[name] == cut(array, offsets, shape)).all(), name
        assert (found["own"] == rank % saved.size).all(), "of the rank whose part it takes"
        assert meta["moved"]["ranks"] == saved.size
        assert meta["moved"]["rank"] == rank % saved.size


def test_what_was_divided_is_whole_where_nothing_was_told(tmp_path):
    saved = Saved(tmp_path, {"weight": array_of(SHAPE)}, (3, 2, 1))
    found, _ = saved.onto(0, (1, 1, 1), told=False)
    assert (found["weight"] == array_of(SHAPE)).all()


def test_what_was_whole_is_divided_where_that_was_told(tmp_path):
    saved = Saved(tmp_path, {"weight": array_of(SHAPE)}, (1, 1, 1))
    for rank in (0, 1):
        found, meta = saved.onto(rank, (2, 1, 1))
        assert (found["weight"] == array_of(SHAPE)[6 * rank : 6 * rank + 6]).all()
        assert meta["tree"]["weight"]["sharded"]


def test_an_optimizer_follows_its_parameter(tmp_path):
    arrays = {
        "optimizer.state.model.w.exp_avg": array_of((8, 3)),
        "optimizer.state.model.w.rows": array_of((8,)),
    }
    point_of = Saved(tmp_path, {n: a for n, a in arrays.items() if a.ndim == 2}, (2, 1))
    place = {"entry": "optimizer.state.model.w", "global_shape": (8, 3), "offsets": (6, 0), "shape": (2, 3)}
    target = tmp_path / "restored"
    point = point_of.catalog.restore_points()[0]
    restore(point_of.catalog, point, 3, target, world_size=4, places=places_of([place]))
    slot = Slot(str(target))
    (entry,) = [e for e in slot.read()[1]["entries"] if "exp_avg" in e["name"]]
    assert (entry["shape"], entry["offsets"], entry["global_shape"]) == ([2, 3], [6, 0], [8, 3])
    slot.close()


def test_only_the_chunks_that_are_needed_are_read(tmp_path, monkeypatch):
    """80 MiB on two ranks, of which each of ten reads its 8 MiB."""
    rows = DIGEST_CHUNK_BYTES // (1024 * 4)
    saved = Saved(tmp_path, {"weight": array_of((10 * rows, 1024))}, (2, 1))
    storage, read = saved.catalog.storage, []
    real = storage.read_into
    monkeypatch.setattr(
        storage, "read_into", lambda path, start, view: read.append(len(view)) or real(path, start, view)
    )
    found, _ = saved.onto(7, (10, 1))
    assert (found["weight"] == saved.arrays["weight"][7 * rows : 8 * rows]).all()
    assert DIGEST_CHUNK_BYTES <= sum(read) < 2.2 * DIGEST_CHUNK_BYTES


def test_a_piece_that_is_damaged_is_found(tmp_path):
    saved = Saved(tmp_path, {"weight": array_of(SHAPE)}, (2, 1, 1))
    (shard,) = (tmp_path / "storage/divided/shards").rglob("1-*.safetensors")
    data = bytearray(shard.read_bytes())
    data[-4] ^= 1
    shard.write_bytes(data)
    with pytest.raises(Damaged, match="digest"):
        saved.onto(2, (3, 1, 1))
    shard.unlink()
    with pytest.raises(Damaged, match="missing"):
        saved.onto(0, (3, 1, 1))


def test_places_that_do_not_read_are_refused():
    for told in ([{}], [{"entry": "x", "global_shape": ["a"], "offsets": [], "shape": []}], "no", [3]):
        with pytest.raises(ValueError, match=r"invalid literal|do not read"):
            places_of(told)
