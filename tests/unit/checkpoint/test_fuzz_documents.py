"""Anything may stand in storage. What reads it raises the documented errors and no other, and asks for no memory."""

from __future__ import annotations

import copy
import json
import multiprocessing
import os
import resource
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orch_workers.checkpoint import Catalog, Damaged, RestorePoint, WrittenByNewer, commit, open_storage
from orch_workers.checkpoint import format as checkpoint_format
from orch_workers.checkpoint.format import parse_manifest, parse_rank, sealed
from orch_workers.checkpoint.objects import Storage
from orch_workers.checkpoint.reader import restore
from orch_workers.checkpoint.records import is_void, parse_generation_record, reason_of
from orch_workers.training.slots import Slot, SlotDamagedError
from support import snapshots

JOB, G1, STEP = "job", (1, 1), 10
PARSE_FACTOR, PARSE_ROOM_BYTES = 60, 8 << 20
"""What a document may take while it is read: this many times its own bytes, and so much besides. JSON's worst is
`[[],[],…`, three bytes for an object of 56 and its place in a list.
"""
MEMORY_MAX_BYTES = 400 << 20
"""More than the process has already, for a restore of what lies about its size."""
SENTENCE_CHARS_MAX = 2000
"""It goes into logs and tables, whatever stands in a document."""
SAVED = snapshots.state(7, 100)


@pytest.fixture(scope="module")
def catalog(tmp_path_factory):
    """One checkpoint in several shards."""
    folder = tmp_path_factory.mktemp("fuzz")
    made = Catalog(open_storage(str(folder / "storage")), JOB)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Storage, "shard_bytes", 1024)
        patch.setattr(checkpoint_format, "SHARD_BYTES_TARGET", 1024)
        made.begin_generation((0, 9))
        made.begin_generation(G1, None)
        slot = snapshots.make(folder / "slot", SAVED, generation=G1, step=STEP)
        commit(made, slot)
        slot.close()
    return made


def readers(catalog):
    return {
        "manifest": (
            catalog.manifest_path(G1, STEP),
            lambda data: parse_manifest(data, job=JOB, generation=G1, step=STEP),
        ),
        "rank": (
            catalog.rank_path(G1, STEP, 0),
            lambda data: parse_rank(data, job=JOB, generation=G1, step=STEP, rank=0),
        ),
        "generation": (
            catalog.generation_path(G1),
            lambda data: parse_generation_record(data, "G", job=JOB, generation=G1),
        ),
    }


KINDS = ("manifest", "rank", "generation")
nasty = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([-1, 2**31, 2**61, 2**62, 2**63, 2**64, 10**400])
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["", "../../etc/passwd", "000001.000001", "\ud800", "~pad/0", "x" * 5000])
    | st.lists(st.integers(), max_size=3)
    | st.dictionaries(st.text(max_size=3), st.integers(), max_size=2)
)


def places(value, path=()):
    """Every place in a document."""
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inner:
        yield from places(item, (*path, key))


def changed(document, path, value):
    if not path:
        return value
    made = copy.deepcopy(document)
    inside = made
    for key in path[:-1]:
        inside = inside[key]
    inside[path[-1]] = value
    return made


def read(parse, data):
    """None where it is damaged, as documented; anything else that is raised fails the test."""
    try:
        return parse(data)
    except Damaged as error:
        said = str(error)
    assert len(said) < SENTENCE_CHARS_MAX
    return None


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_documents_that_say_something_else(catalog, kind, data):
    """By a writer that lies: the digest of what it says is right."""
    path, parse = readers(catalog)[kind]
    document = json.loads(catalog.storage.read(path))
    del document["digest"]
    where = data.draw(st.sampled_from(list(places(document))))
    lie = changed(document, where, data.draw(nasty))
    for encoded in (
        json.dumps(lie).encode(),
        sealed(json.dumps(lie).encode()) if isinstance(lie, dict) else b"",
    ):
        read(parse, encoded)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_documents_with_changed_bytes_are_never_taken_for_what_they_are_not(catalog, kind, data):
    path, parse = readers(catalog)[kind]
    good = catalog.storage.read(path)
    at = data.draw(st.integers(0, len(good) - 1))
    how = data.draw(st.sampled_from(["changed", "cut", "more", "less"]))
    byte = bytes([data.draw(st.integers(0, 255))])
    bad = {
        "changed": good[:at] + byte + good[at + 1 :],
        "cut": good[:at],
        "more": good[:at] + byte * 3 + good[at:],
        "less": good[:at] + good[at + 1 :],
    }[how]
    found = read(parse, bad)
    assert found is None or found == parse(good)


@pytest.mark.parametrize("kind", KINDS)
def test_every_flipped_bit_is_found(catalog, kind):
    path, parse = readers(catalog)[kind]
    good = catalog.storage.read(path)
    for at in range(0, len(good), 1 if len(good) < 2000 else 7):
        for bit in range(8):
            bad = bytearray(good)
            bad[at] ^= 1 << bit
            found = read(parse, bytes(bad))
            assert found is None or found == parse(good), f"byte {at}, bit {bit}"


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(junk=st.binary(max_size=300) | st.text(max_size=100).map(lambda t: t.encode("utf-8", "surrogatepass")))
def test_junk(catalog, kind, junk):
    assert read(readers(catalog)[kind][1], junk) is None
    reason_of(junk)
    is_void(junk)


def bombs():
    deep = 200_000
    return {
        "deep lists": b"[" * deep + b"]" * deep,
        "deep objects": b'{"a":' * deep + b"1" + b"}" * deep,
        "many empty lists": b"[" + b"[]," * 10_000 + b"[]]",
        "a long number": b'{"version":' + b"9" * 100_000 + b"}",
        "a large exponent": b'{"version":1e999,"needs_version":1e999}',
        "never closed": b'{"a":"' + b"x" * 1_000_000,
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", bombs())
def test_bombs(catalog, kind, name):
    bomb = bombs()[name]
    tracemalloc.start()
    try:
        assert read(readers(catalog)[kind][1], bomb) is None
        reason_of(bomb)
        is_void(bomb)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= PARSE_FACTOR * len(bomb) + PARSE_ROOM_BYTES


LIES = {
    "world size": ("manifest", ("world_size",), 2**61),
    "size of the rank manifest": ("manifest", ("ranks", 0, "size_bytes"), 2**61),
    "data of the rank": ("rank", ("data_bytes",), 2**61),
    "size of a shard": ("rank", ("shards", 0, "size_bytes"), 2**61),
    "where data begins": ("rank", ("shards", 0, "data_offset"), 2**61),
    "size of a tensor": ("rank", ("tensors", 0, "size_bytes"), 2**61),
    "dimensions": ("rank", ("tensors", 0, "shape"), [2**61] * 300_000),
    "dtype": ("rank", ("tensors", 0, "dtype"), "F64"),
    "where a tensor begins": ("rank", ("tensors", 0, "start"), 2**61),
    "which shard": ("rank", ("tensors", 0, "shard"), 2**61),
    "path of a shard": ("rank", ("shards", 0, "path"), "../../../../dev/zero"),
}


@pytest.mark.parametrize("name", LIES)
def test_a_manifest_that_lies_asks_for_no_memory(catalog, name, tmp_path):
    """In a process that may not have much, with the digests of what it says right."""
    kind, where, lie = LIES[name]
    root = tmp_path / "storage"
    root.mkdir()
    os.system(f"cp -r {catalog.storage.root}/. {root}")
    copied = Catalog(open_storage(str(root)), JOB)
    path, _ = readers(copied)[kind]
    document = json.loads((root / path).read_bytes())
    del document["digest"]
    data = sealed(json.dumps(changed(document, where, lie)).encode())
    (root / path).write_bytes(data)
    if kind == "rank":
        path = copied.manifest_path(G1, STEP)
        document = json.loads((root / path).read_bytes())
        del document["digest"]
        document["ranks"][0].update(size_bytes=len(data), digest=checkpoint_format.digest_of(data))
        if name == "data of the rank":
            document["ranks"][0]["data_bytes"] = lie
        (root / path).write_bytes(sealed(json.dumps(document).encode()))
    assert in_little_memory(copied, tmp_path / "restored") == "Damaged"


def in_little_memory(catalog, target):
    """The name of the error of a restore that may take MEMORY_MAX_BYTES."""
    context = multiprocessing.get_context("fork")
    said = context.SimpleQueue()

    def act():
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_MAX_BYTES,) * 2)
        try:
            restore(catalog, RestorePoint(G1, STEP), 0, target)
            said.put("nothing")
        except BaseException as error:
            said.put(type(error).__name__)
        os._exit(0)

    process = context.Process(target=act)
    process.start()
    process.join(60)
    assert process.exitcode == 0, "it hangs, or was killed"
    return said.get()


def test_an_honest_one_is_restored_in_little_memory(catalog, tmp_path):
    assert in_little_memory(catalog, tmp_path / "restored") == "nothing"


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_shards_with_changed_bytes(catalog, data, tmp_path_factory):
    """Whatever byte of a shard is not what was committed: it is found, or it is one that means nothing (padding)."""
    shards = [entry.path for entry in catalog.storage.list(catalog.shards_folder(G1, STEP))]
    path = catalog.storage.root / data.draw(st.sampled_from(shards))
    good = path.read_bytes()
    at = data.draw(st.integers(0, len(good) - 1))
    try:
        path.write_bytes(good[:at] + bytes([data.draw(st.integers(0, 255))]) + good[at + 1 :])
        target = tmp_path_factory.getbasetemp() / "restored"
        try:
            restore(catalog, RestorePoint(G1, STEP), 0, target)
        except Damaged:
            return
        assert snapshots.arrays_in(target) == snapshots.arrays_of(SAVED)
    finally:
        path.write_bytes(good)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_slots_with_changed_bytes(data, tmp_path_factory):
    """Shared memory is read without digests, but never past its end, and never into something else than an error."""
    path = tmp_path_factory.getbasetemp() / "slot"
    snapshots.make(path, SAVED, generation=G1, step=STEP).close()
    good = path.read_bytes()
    at = data.draw(st.integers(0, 100) | st.integers(0, len(good) - 1))
    path.write_bytes(good[:at] + bytes([data.draw(st.integers(0, 255))]) + good[at + 1 :])
    slot = Slot(str(path))
    try:
        _, meta = slot.read()
    except SlotDamagedError:
        pass
    else:
        assert meta["step"] == STEP
    finally:
        slot.close()


def test_what_a_newer_orch_wrote_is_said_to_be_so(catalog):
    for kind in KINDS:
        path, parse = readers(catalog)[kind]
        document = json.loads(catalog.storage.read(path)) | {"version": 99}
        del document["digest"]
        with pytest.raises(WrittenByNewer, match=r"written by a newer orch.*format version 99") as caught:
            parse(sealed(json.dumps(document).encode()))
        assert caught.value.needs_version == 99
