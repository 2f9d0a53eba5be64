"""Layouts: what can be stored comes back, what cannot is refused, a manifest that lies is found out."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load

from orch_workers.checkpoint import Catalog, Damaged, commit, find_and_restore, open_storage
from orch_workers.checkpoint import format as checkpoint_format
from orch_workers.checkpoint.format import (
    DIGEST_CHUNK_BYTES,
    Piece,
    check_entries,
    cut,
    digests_of,
    encode,
    parse_rank,
    parse_sealed,
    shard_header,
)
from orch_workers.checkpoint.layout import layout_of
from support import snapshots

G1 = (1, 1)
names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20).filter(
    lambda name: not name.startswith("~pad/") and name != "__metadata__"
)
shapes = st.lists(st.integers(0, 5), max_size=4).map(tuple)
arrays = st.tuples(st.sampled_from(sorted(snapshots.DTYPES)), shapes, st.binary(min_size=16, max_size=16))


def array_of(drawn):
    dtype, shape, seed = drawn
    count = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = (seed * (count // 16 + 1))[:count]
    if dtype == "bool":
        raw = bytes(byte & 1 for byte in raw)
    return np.frombuffer(raw, dtype=dtype).reshape(shape)


trees = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(), children, max_size=3),
    max_leaves=10,
)


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(names, arrays, max_size=8), trees, st.integers(1, 3), st.integers(0, 10**12 - 1))
def test_round_trip(drawn, tree, shard_kib, step):
    saved = snapshots.State({name: array_of(a) for name, a in drawn.items()}, tree=tree)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint_format, "SHARD_BYTES_TARGET", shard_kib * 64)
        top = Path(folder)
        catalog = Catalog(open_storage(str(top / "storage")), "job")
        catalog.begin_generation(G1)
        slot = snapshots.make(top / "slot", saved, step=step)
        commit(catalog, slot)
        found = find_and_restore(catalog, 0, top / "restore")
        assert found is not None
        restored = snapshots.Slot(found.path)
        assert restored.read()[1] == slot.read()[1]
        restored.close()
        slot.close()
        assert snapshots.arrays_in(found.path) == snapshots.arrays_of(saved)
        for entry in catalog.storage.list("job/shards"):
            for name, array in load(catalog.storage.read(entry.path)).items():
                if not name.startswith("~pad/"):
                    assert array.tobytes() == saved.arrays[name].tobytes()


def test_a_tree_as_deep_as_json_can_be(tmp_path):
    tree = "leaf"
    for _ in range(400):
        tree = {"d": tree}
    catalog = Catalog(open_storage(str(tmp_path / "storage")), "job")
    catalog.begin_generation(G1)
    slot = snapshots.make(tmp_path / "slot", snapshots.State({}, tree=tree))
    commit(catalog, slot)
    slot.close()
    found = find_and_restore(catalog, 0, tmp_path / "restore")
    assert snapshots.Slot(found.path).read()[1]["tree"] == tree


def entry(name="a", offset=0, shape=(4,), dtype="F32", size=None):
    size = int(np.prod(shape)) * 4 if size is None else size
    return {"name": name, "dtype": dtype, "shape": list(shape), "offset": offset, "size_bytes": size}


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ([entry(), entry(offset=64)], "occurs twice"),
        ([entry(name="~pad/0")], "reserved"),
        ([entry(name="__metadata__")], "reserved"),
        ([entry(offset=8)], "misaligned"),
        ([entry(), entry("b", shape=(2,))], "overlaps"),
        ([entry(shape=(1000,))], "outside the data"),
        ([entry(size=12)], "does not have 12 bytes"),
    ],
)
def test_layouts_that_cannot_be_stored(entries, reason):
    with pytest.raises(ValueError, match=reason):
        check_entries(entries, 128)


def test_shards_end_where_an_entry_ends(monkeypatch):
    monkeypatch.setattr(checkpoint_format, "SHARD_BYTES_TARGET", 128)
    entries = [entry(str(n), 64 * n, (16,)) for n in range(5)]
    pieces = cut(entries, 320)
    assert [(p.start, p.end, len(p.entries)) for p in pieces] == [(0, 128, 2), (128, 256, 2), (256, 320, 1)]
    assert cut([], 0) == []


def test_headers_keep_the_data_aligned():
    for length in range(1, 70):
        header = shard_header(Piece(0, 16, (entry("n" * length),)), {})
        assert len(header) % 64 == 0
        assert int.from_bytes(header[:8], "little") == len(header) - 8


def test_a_header_ends_where_the_data_lies_in_its_page():
    for phase in (0, 64, 4032):
        assert len(shard_header(Piece(0, 16, (entry(),)), {"a": "b"}, phase)) % 4096 == phase


def test_a_layout_is_kept_until_anything_of_it_changes(monkeypatch):
    entries = [entry(), entry("b", 64)]
    kept = layout_of(entries, 128, 256)
    assert layout_of([dict(e) for e in entries], 128, 256) is kept
    renamed = layout_of([entry(), entry("c", 64)], 128, 256)
    assert '"c"' in renamed.tensors(0, memoryview(bytes(128)))
    assert layout_of(entries, 192, 256) is not kept
    assert len(layout_of(entries, 128, 64).pieces) == 2
    monkeypatch.setattr(checkpoint_format, "SHARD_BYTES_TARGET", 64)
    assert len(layout_of(entries, 128, 256).pieces) == 2


def test_digests_count_from_the_tensors_own_beginning():
    data = memoryview(bytes(2 * DIGEST_CHUNK_BYTES + 1))
    first, second, third = digests_of(data)
    assert first == second != third
    assert digests_of(data[:0]) == ()


@pytest.fixture
def rank_document(tmp_path):
    catalog = Catalog(open_storage(str(tmp_path / "storage")), "job")
    catalog.begin_generation(G1)
    slot = snapshots.make(tmp_path / "slot", snapshots.state())
    commit(catalog, slot)
    slot.close()
    return parse_sealed(catalog.storage.read(catalog.rank_path(G1, 10, 0)), "rank manifest")


def parse(document):
    return parse_rank(json.dumps(document).encode(), job="job", generation=G1, step=10, rank=0)


def lies():
    def tensor(**change):
        return lambda d: d["tensors"][0].update(change)

    return {
        "data_bytes": (lambda d: d.update(data_bytes=1 << 60), "for 1152921504606846976 bytes of data"),
        "shard too small": (lambda d: d["shards"][0].update(size_bytes=64), "bytes of data"),
        "outside": (tensor(start=1 << 40), "lies outside its shard"),
        "no such shard": (tensor(shard=3), "lies outside its shard"),
        "overlap": (tensor(start=12_032), "overlaps"),
        "unaligned": (lambda d: d["tensors"][3].update(start=12_160 - 8), "overlaps|aligned"),
        "shape": (tensor(shape=[3]), "does not have"),
        "digests": (tensor(digests=[]), "0 digests"),
        "digest": (tensor(digests=["x"]), r"tensors\.0\.digests"),
        "global": (tensor(global_shape=[10, 3]), "outside its global shape"),
        "rank of shape": (tensor(offsets=[0]), "differ in length"),
        "twice": (lambda d: d["tensors"].append(d["tensors"][0]), "listed twice"),
        "negative": (tensor(start=-64), r"tensors\.0\.start"),
        "float": (tensor(start=0.5), r"tensors\.0\.start"),
        "rank": (lambda d: d.update(rank=1), "is of rank 1"),
        "format": (lambda d: d.update(format="orch-checkpoint"), "format"),
        "version": (lambda d: d.update(version=99), "format version 99"),
        "version zero": (lambda d: d.update(version=0), "format version 0"),
    }


@pytest.mark.parametrize("what", lies())
def test_a_manifest_that_lies(rank_document, what):
    change, reason = lies()[what]
    parse(rank_document)
    change(rank_document)
    with pytest.raises(Damaged, match=reason):
        parse(rank_document)


def test_unknown_keys_of_the_same_version_are_no_damage(rank_document):
    rank_document["later"] = {"more": 1}
    rank_document["tensors"][0]["later"] = 1
    assert encode(parse(rank_document))


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200) | st.text().map(str.encode) | trees.map(lambda t: json.dumps(t).encode()))
def test_garbage_is_damage_and_nothing_else(data):
    with pytest.raises(Damaged):
        parse_rank(data, job="job", generation=G1, step=1, rank=0)
