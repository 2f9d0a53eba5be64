"""The checkpoint engine against a real S3 server."""

from __future__ import annotations

import contextlib
import random
import threading

import pytest

from orch_policies.retention import Rules
from orch_workers.checkpoint import (
    AlreadyExists,
    Catalog,
    NotFound,
    StorageRefused,
    StorageUnavailable,
    Superseded,
    find_and_restore,
    open_storage,
)
from orch_workers.checkpoint import format as checkpoint_format
from orch_workers.checkpoint import s3 as native
from support import snapshots
from support.seaweed import BUCKET, SeaweedFS

pytestmark = pytest.mark.integration

G1, G2 = (1, 1), (2, 1)


@pytest.fixture
def catalog(s3):
    return Catalog(s3, "digits-1a2b")


def commit_at(catalog, tmp_path, generation, step, *, seed=None):
    name = tmp_path / f"slot-{threading.get_ident()}"
    saved = snapshots.state(step if seed is None else seed)
    return snapshots.commit_state(catalog, name, saved, generation=generation, step=step)


def test_objects(either):
    s3 = either
    s3.check_writable()
    assert s3.list() == []
    assert s3.list("nothing") == []
    assert s3.create("a/b", [b"12", memoryview(b"34")]) is True
    assert s3.create("a/b", b"1234") is False
    for other in (b"", b"123", b"1235"):
        with pytest.raises(AlreadyExists):
            s3.create("a/b", other)
    assert s3.read("a/b") == b"1234"
    assert s3.read("a/b", 1, 3) == b"23"
    assert s3.read("a/b", 2, 99) == b"34"
    assert s3.read("a/b", 9, 12) == b""
    view = memoryview(bytearray(8))
    assert s3.read_into("a/b", 1, view) == 3
    assert bytes(view[:3]) == b"234"
    s3.create("a/empty", b"")
    assert s3.read("a/empty", 0, 10) == b""
    assert [(e.path, e.size_bytes) for e in s3.list("a")] == [("a/b", 4), ("a/empty", 0)]
    assert s3.list()[0].modified_us > 1_600_000_000_000_000
    assert s3.exists("a/b")
    assert not s3.exists("a")
    assert not s3.exists("a/none")
    with pytest.raises(NotFound):
        s3.read("a/none")
    s3.delete("a/b")
    s3.delete("a/b")
    assert not s3.exists("a/b")


def test_folders_right_below(either):
    assert list(either.folders()) == []
    for path in ("a/x", "a/b/y", "c/d/e/z", "file"):
        either.create(path, b"1")
    assert list(either.folders()) == ["a", "c"]


@pytest.mark.parametrize("size_bytes", [100, 9 << 20])
def test_of_many_writers_one_wins(either, size_bytes):
    """Of the manifest's size, and of a shard's: nothing is replaced, and no winner's bytes are mixed."""
    contents = [random.Random(number).randbytes(size_bytes) for number in range(8)]
    won = []
    barrier = threading.Barrier(len(contents))

    def write(number):
        barrier.wait(20)
        with contextlib.suppress(AlreadyExists):
            assert either.create("x", [contents[number][:7], contents[number][7:]]) is True
            won.append(number)

    in_threads(write, range(len(contents)))
    [winner] = won
    assert either.read("x") == contents[winner]


def test_what_one_put_cannot_take_goes_up_in_parts(s3, monkeypatch):
    parts_of(s3, monkeypatch)
    content = random.Random(1).randbytes((11 << 20) + 3)
    assert s3.create("x", [content[: 6 << 20], content[6 << 20 :]]) is True
    assert s3.create("x", content) is False
    with pytest.raises(AlreadyExists):
        s3.create("x", bytes(len(content)))
    assert s3.read("x") == content
    assert [entry.path for entry in s3.list()] == ["x"]


def parts_of(storage, monkeypatch):
    monkeypatch.setattr(storage, "fenced_bytes_max", 1 << 20)
    monkeypatch.setattr(native, "PART_BYTES_MIN", 5 << 20)


def test_parts_of_an_upload_that_fails_are_taken_away(s3, monkeypatch):
    parts_of(s3, monkeypatch)
    upload_part = s3._client.upload_part

    def second_fails(PartNumber, **given):  # noqa: N803 - as S3 names it
        if PartNumber == 2:
            raise TimeoutError("no answer")
        return upload_part(PartNumber=PartNumber, **given)

    monkeypatch.setattr(s3._client, "upload_part", second_fails)
    with pytest.raises(StorageUnavailable, match="no answer"):
        s3.create("x", bytes(11 << 20))
    prefix = s3._key("x")
    assert not s3._client.list_multipart_uploads(Bucket=BUCKET, Prefix=prefix).get("Uploads")


def in_threads(call, values):
    failures = []

    def one(value):
        try:
            call(value)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=one, args=(value,)) for value in values]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert failures == []


def test_refusals_are_sentences(seaweed):
    absent = open_storage("s3://no-such-bucket/x", seaweed.options, seaweed.env)
    with pytest.raises(StorageRefused, match="no bucket 'no-such-bucket'"):
        absent.list()
    with pytest.raises(StorageRefused, match="no such bucket"):
        absent.read("a")
    wrong = open_storage(seaweed.url("x"), seaweed.options, seaweed.env | {"AWS_SECRET_ACCESS_KEY": "no"})
    for call in (wrong.list, lambda: wrong.read("a"), lambda: wrong.create("a", b"1"), wrong.check_writable):
        with pytest.raises(StorageRefused):
            call()


def test_round_trip_in_several_shards(catalog, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint_format, "SHARD_BYTES_TARGET", 4096)
    assert find_and_restore(catalog, 0, tmp_path / "restore") is None
    catalog.begin_generation(G1)
    assert commit_at(catalog, tmp_path, G1, 5).already is False
    assert commit_at(catalog, tmp_path, G1, 5).already is True
    found = find_and_restore(catalog, 0, tmp_path / "restore")
    assert snapshots.arrays_in(found.path) == snapshots.arrays_of(snapshots.state(5))


@pytest.mark.parametrize("damage", ["flipped", "truncated", "missing"])
def test_a_damaged_shard_is_quarantined_and_the_next_older_used(catalog, tmp_path, seaweed, damage):
    catalog.begin_generation(G1)
    for step in (5, 10):
        commit_at(catalog, tmp_path, G1, step)
    path = catalog.shard_path(G1, 10, 0, 0)
    data = bytearray(catalog.storage.read(path))
    if damage == "flipped":
        data[3000] ^= 1
        seaweed.overwrite(catalog.storage, path, bytes(data))
    elif damage == "truncated":
        seaweed.overwrite(catalog.storage, path, bytes(data[:-1]))
    else:
        catalog.storage.delete(path)
    found = find_and_restore(catalog, 0, tmp_path / "restore")
    assert found.point.step == 5
    [rejected] = found.rejected
    assert rejected.step == 10
    assert [p.step for p in catalog.quarantined()] == [10]


def test_an_error_after_the_write_has_landed_is_a_success(s3, monkeypatch):
    put_object = s3._client.put_object

    def landed_but_unheard(**given):
        put_object(**given)
        raise TimeoutError("no answer")

    monkeypatch.setattr(s3._client, "put_object", landed_but_unheard)
    assert s3.create("x", b"12") is True
    assert s3.create("x", b"12") is False
    with pytest.raises(AlreadyExists):
        s3.create("x", b"13")


def test_two_writers_of_one_step_make_one_checkpoint(catalog, tmp_path):
    catalog.begin_generation(G1)
    barrier = threading.Barrier(3)
    results = []

    def write(number):
        barrier.wait(20)
        results.append(commit_at(catalog, tmp_path, G1, 7, seed=number).already)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(results) == [False, True, True]
    found = find_and_restore(catalog, 0, tmp_path / "restore")
    assert snapshots.arrays_in(found.path) in [snapshots.arrays_of(snapshots.state(n)) for n in range(3)]


def test_a_superseded_writer_that_wakes_up_never_wins(s3, tmp_path, rng):
    """The older generation goes on committing while the newer begins; whatever the order, the chain wins."""
    for number in range(6):
        catalog = Catalog(s3, f"round-{number}")
        catalog.begin_generation(G1)
        commit_at(catalog, tmp_path, G1, 10)
        fork_after = rng.randrange(4)
        superseded = []
        begun = threading.Event()

        def zombie(catalog=catalog, superseded=superseded, begun=begun, fork_after=fork_after):
            for count in range(5):
                if count == fork_after:
                    begun.set()
                try:
                    commit_at(catalog, tmp_path, G1, 11 + count)
                except Superseded:
                    superseded.append(11 + count)

        thread = threading.Thread(target=zombie)
        thread.start()
        assert begun.wait(60)
        catalog.begin_generation(G2, G1, 10)
        commit_at(catalog, tmp_path, G2, 11, seed=99)
        thread.join(120)
        found = find_and_restore(catalog, 0, tmp_path / "restore")
        assert found.point[:2] == (G2, 11)
        assert snapshots.arrays_in(found.path) == snapshots.arrays_of(snapshots.state(99))
        assert [p[:2] for p in catalog.restore_points()] == [(G2, 11), (G1, 10)]
        with pytest.raises(Superseded):
            commit_at(catalog, tmp_path, G1, 20)


def test_retention_and_the_end(catalog, tmp_path):
    catalog.begin_generation(G1)
    for step in range(1, 5):
        commit_at(catalog, tmp_path, G1, step)
    catalog.retain(Rules(last=2))
    assert [p.step for p in catalog.restore_points()] == [4, 3]
    assert len(catalog.storage.list()) == 1 + 2 * 3
    catalog.storage.delete(catalog.manifest_path(G1, 3))
    assert catalog.sweep() == 2
    catalog.delete_all()
    assert catalog.storage.list() == []


def test_storage_away_is_no_damage(tmp_path):
    with SeaweedFS(tmp_path / "s3") as server:
        catalog = Catalog(open_storage(server.url("away"), server.options, server.env), "job")
        catalog.begin_generation(G1)
        commit_at(catalog, tmp_path, G1, 5)
        server.stop()
        with pytest.raises(StorageUnavailable):
            find_and_restore(catalog, 0, tmp_path / "restore")
        with pytest.raises(StorageUnavailable):
            commit_at(catalog, tmp_path, G1, 6)
        server.start()
        assert commit_at(catalog, tmp_path, G1, 6).already is False
        found = find_and_restore(catalog, 0, tmp_path / "restore")
        assert found.point.step == 6
        assert catalog.quarantined() == {}
