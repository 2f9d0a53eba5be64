"""The local storage, and what `open_storage` accepts."""

from __future__ import annotations

import contextlib
import errno
import os
import pickle
import sys
import threading

import pytest

from orch_workers.checkpoint import (
    AlreadyExists,
    NotFound,
    StorageRefused,
    StorageUnavailable,
    direct,
    open_storage,
    s3,
)
from orch_workers.checkpoint import local as local_module


@pytest.fixture
def storage(tmp_path):
    return open_storage(f"file://{tmp_path}/with space")


def files(storage):
    return sorted(p.name for p in storage.root.rglob("*") if p.is_file())


def test_create_read_list_delete(storage):
    assert storage.list() == []
    assert storage.create("a/b/c.bin", [b"12", bytearray(b"34"), memoryview(b"56"), b""]) is True
    assert storage.read("a/b/c.bin") == b"123456"
    assert storage.read("a/b/c.bin", 2) == b"3456"
    assert storage.read("a/b/c.bin", 2, 4) == b"34"
    assert storage.read("a/b/c.bin", 4, 99) == b"56"
    assert storage.read("a/b/c.bin", 99, 100) == b""
    view = memoryview(bytearray(4))
    assert storage.read_into("a/b/c.bin", 3, view) == 3
    assert bytes(view) == b"456\0"
    storage.create("a/d", b"")
    assert [(e.path, e.size_bytes) for e in storage.list("a")] == [("a/b/c.bin", 6), ("a/d", 0)]
    assert storage.list("a/b")[0].modified_us > 1_600_000_000_000_000
    assert storage.list("nothing") == []
    assert storage.exists("a/d")
    storage.delete("a/b/c.bin")
    storage.delete("a/b/c.bin")
    assert not (storage.root / "a/b").exists()
    assert files(storage) == ["d"]


def test_many_small_buffers(storage):
    parts = [bytes([n % 256]) * (n % 7) for n in range(5000)]
    storage.create("x", parts)
    assert storage.read("x") == b"".join(parts)


def test_create_never_replaces(storage):
    storage.create("x", b"first")
    with pytest.raises(AlreadyExists):
        storage.create("x", b"other")
    with pytest.raises(AlreadyExists):
        storage.create("x", b"firsts")
    assert storage.create("x", b"first") is False
    assert storage.read("x") == b"first"
    assert files(storage) == ["x"]


def test_of_many_writers_one_wins(storage):
    barrier = threading.Barrier(8)
    winners = []

    def write(number):
        barrier.wait(20)
        with contextlib.suppress(AlreadyExists):
            winners.append((storage.create("deep/x", bytes([number]) * 1000), number))

    threads = [threading.Thread(target=write, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    [(made, number)] = winners
    assert made
    assert storage.read("deep/x") == bytes([number]) * 1000
    assert files(storage) == ["x"]


def test_creating_while_folders_are_pruned(storage):
    """Deleting the last object of a folder removes the folder, also under a writer's hands."""
    stop = threading.Event()

    def prune():
        while not stop.is_set():
            storage.create("d/e/f/other", b"x")
            storage.delete("d/e/f/other")

    thread = threading.Thread(target=prune)
    thread.start()
    try:
        for number in range(200):
            storage.create(f"d/e/f/{number}", b"x")
            storage.delete(f"d/e/f/{number}")
    finally:
        stop.set()
        thread.join(60)
    assert storage.list() == []


def test_errors_by_kind(storage, monkeypatch):
    with pytest.raises(NotFound):
        storage.read("none")
    with pytest.raises(NotFound):
        storage.read_into("none", 0, memoryview(bytearray(1)))
    storage.create("file", b"")
    with pytest.raises(StorageRefused):
        storage.create("file/below", b"x")

    def full(descriptor, buffers):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(direct, "write_all", full)
    with pytest.raises(StorageUnavailable, match="No space left"):
        storage.create("x", b"x")
    assert files(storage) == ["file"]


def test_a_write_whose_end_is_unknown_is_settled_by_looking(storage, monkeypatch):
    sync = local_module._sync_folder
    failures = [OSError(errno.EIO, "Input/output error")]

    def once_failing(folder):
        if (folder / "x").exists() and failures:
            raise failures.pop()
        sync(folder)

    monkeypatch.setattr(local_module, "_sync_folder", once_failing)
    assert storage.create("x", b"x") is True
    assert failures == []


def test_without_hard_links_only_unfenced(tmp_path, monkeypatch):
    def no_links(*args, **kwargs):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "link", no_links)
    with pytest.raises(StorageRefused, match=r"has no hard links.*unfenced: true"):
        open_storage(str(tmp_path / "a")).check_writable()
    unfenced = open_storage(str(tmp_path / "b"), unfenced=True)
    unfenced.check_writable()
    unfenced.create("x", b"1")
    with pytest.raises(AlreadyExists):
        unfenced.create("x", b"2")


def test_check_writable_leaves_nothing(storage):
    storage.check_writable()
    assert files(storage) == []


def test_check_writable_says_why_not(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageRefused, match="Not a directory"):
        open_storage(str(tmp_path / "file")).check_writable()


def test_leftovers_of_killed_writers(storage):
    storage.create("a/x", b"x")
    left = storage.root / "a" / ".tmp-1234"
    left.write_bytes(b"half")
    assert [e.path for e in storage.list()] == ["a/x"]
    assert storage.sweep_temporaries(3600) == 0
    os.utime(left, (1, 1))
    assert storage.sweep_temporaries(3600) == 1
    assert files(storage) == ["x"]


@pytest.mark.parametrize(
    "path", ["", "/etc/passwd", "../x", "a/../../x", "a//b", "a/.", ".tmp-1", "a\nb", "a\\b"]
)
def test_paths_stay_inside(storage, path):
    with pytest.raises(StorageRefused, match="no object's path"):
        storage.create(path, b"x")


def test_a_storage_is_not_pickled(storage):
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(storage)


@pytest.mark.parametrize(
    ("url", "options", "reason"),
    [
        ("simplecache::http://127.0.0.1/", {}, "chained"),
        ("http://127.0.0.1/x", {}, "no protocol that orch opens"),
        ("file+x://127.0.0.1/x", {}, "no protocol that orch opens"),
        ("sftp://127.0.0.1/x", {}, "cannot prove that sftp"),
        ("memory://x", {}, "cannot prove that memory"),
        ("s3://", {}, "names no bucket"),
        ("/tmp/x", {"endpoint_url": "x"}, "no options"),
    ],
)
def test_refused_storages(url, options, reason):
    with pytest.raises(StorageRefused, match=reason):
        open_storage(url, options)


def test_unfenced_opens_what_fsspec_opens():
    storage = open_storage("memory://orch-test", unfenced=True)
    storage.check_writable()
    storage.create("a/b", b"12")
    assert storage.create("a/b", b"12") is False
    assert [(e.path, e.size_bytes) for e in storage.list()] == [("a/b", 2)]
    storage.delete("a/b")
    assert storage.list() == []


ENV = {
    "AWS_ACCESS_KEY_ID": "id",
    "AWS_SECRET_ACCESS_KEY": "hush",
    "AWS_SESSION_TOKEN": "token",
    "AWS_ENDPOINT_URL": "http://127.0.0.1:1",
    "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:2",
    "AWS_REGION": "eu-west-1",
}


def test_credentials_are_given_explicitly_and_not_shown(monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "the agent's own")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:3")
    storage = open_storage("s3://bucket/a/b/", {"addressing_style": "path"}, ENV)
    client = storage._client
    credentials = client._get_credentials()
    assert (credentials.access_key, credentials.secret_key, credentials.token) == ("id", "hush", "token")
    assert client.meta.endpoint_url == "http://127.0.0.1:2"
    assert client.meta.region_name == "eu-west-1"
    assert client.meta.config.s3["addressing_style"] == "path"
    assert "hush" not in repr(storage)
    assert open_storage("s3a://bucket/a/b/", {}, ENV)._client is not client
    assert storage.url == "s3://bucket/a/b"


def test_options_win_over_the_jobs_variables():
    given = {
        "key": "other",
        "region": "us-east-2",
        "endpoint_url": "http://127.0.0.1:4",
        "client_kwargs": {"verify": False},
        "config_kwargs": {"read_timeout": 7, "s3": {"payload_signing_enabled": True}},
    }
    client = open_storage("s3://bucket", given, ENV)._client
    assert client._get_credentials().access_key == "other"
    assert (client.meta.region_name, client.meta.endpoint_url) == ("us-east-2", "http://127.0.0.1:4")
    assert client.meta.config.read_timeout == 7
    assert client.meta.config.s3 == {"payload_signing_enabled": True}


def test_options_that_only_s3fs_knows_are_served_by_s3fs():
    filesystem = open_storage("s3://bucket/a", {"requester_pays": True}, ENV)._fs
    assert (filesystem.key, filesystem.secret, filesystem.endpoint_url) == (
        "id",
        "hush",
        "http://127.0.0.1:2",
    )
    assert filesystem.client_kwargs["region_name"] == "eu-west-1"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"profile": "no-such-profile"}, "no-such-profile"),
        ({"endpoint_url": "127.0.0.1:1"}, "Invalid endpoint"),
    ],
)
def test_what_the_client_refuses_at_once_is_a_sentence(options, reason):
    with pytest.raises(StorageRefused, match=reason):
        open_storage("s3://bucket", options)


def test_without_the_extra_the_sentence_says_what_to_install(monkeypatch):
    for module in ("botocore.session", "s3fs"):
        monkeypatch.setitem(sys.modules, module, None)
    for options in ({}, {"requester_pays": True}):
        with pytest.raises(StorageRefused, match=r"needs s3fs; install it with: pip install 'orch\[s3\]'"):
            open_storage("s3://bucket", options)


def test_a_body_is_its_buffers_one_after_the_other(monkeypatch):
    monkeypatch.setattr(s3, "SEND_BYTES", 3)
    whole = b"0123456789abc"
    body = s3.Body([memoryview(whole[:5]), memoryview(whole[5:6]), memoryview(whole[6:])])

    def everything(body):
        return b"".join(iter(body.read, b""))

    assert len(body) == len(whole)
    assert everything(body) == whole
    assert bytes(body.read()) == b""
    assert (body.seek(4), everything(body)) == (4, whole[4:])
    assert (body.seek(-2, 2), everything(body), body.tell()) == (11, whole[11:], 13)
    assert [everything(body.part(at, 4)) for at in range(0, 13, 4)] == [b"0123", b"4567", b"89ab", b"c"]
    assert len(body.part(8, 100)) == 5
