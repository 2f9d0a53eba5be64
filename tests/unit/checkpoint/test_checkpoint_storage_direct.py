"""Writing and reading past the page cache: the same bytes, wherever they lie and whatever the file system takes."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orch_workers.checkpoint import direct, open_storage
from orch_workers.checkpoint.direct import BLOCK_BYTES

CONTENT = os.urandom(1 << 20)
lengths = st.integers(0, 40_000) | st.sampled_from([BLOCK_BYTES, 8 * BLOCK_BYTES, 100_000])
places = st.integers(0, 3 * BLOCK_BYTES) | st.sampled_from([0, 64, BLOCK_BYTES])
buffers = st.lists(st.tuples(places, lengths), max_size=5)


@pytest.fixture(autouse=True)
def _small_steps(monkeypatch):
    monkeypatch.setattr(direct, "DIRECT_BYTES_MIN", 1)
    monkeypatch.setattr(direct, "STEP_BYTES", 4 * BLOCK_BYTES)
    monkeypatch.setattr(direct, "BOUNCE_BYTES", 2 * BLOCK_BYTES)


def in_memory(place: int, content: bytes) -> memoryview:
    """A view that begins `place` bytes behind the beginning of a page."""
    view = memoryview(mmap.mmap(-1, place + max(1, len(content))))[place : place + len(content)]
    view[:] = content
    return view


def written(path: Path, views: list[memoryview]) -> bytes:
    descriptor = os.open(path, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
    try:
        direct.write_all(descriptor, views)
    finally:
        os.close(descriptor)
    return path.read_bytes()


def knows_direct(tmp_path: Path) -> bool:
    try:
        os.close(os.open(tmp_path / "probe", os.O_CREAT | os.O_WRONLY | os.O_DIRECT))
    except OSError:
        return False
    return True


@settings(max_examples=150, deadline=None)
@given(drawn=buffers)
def test_any_buffers_anywhere(drawn):
    views, whole = [], b""
    for place, length in drawn:
        content = CONTENT[len(whole) : len(whole) + length]
        views.append(in_memory(place, content))
        whole += content
    with tempfile.TemporaryDirectory() as name:
        assert written(Path(name, "x"), views) == whole


@settings(max_examples=150, deadline=None)
@given(place=places, start=st.integers(0, 100_000), length=lengths, cached=st.booleans())
def test_any_stretch_into_any_place(place, start, length, cached):
    content = CONTENT[:100_000]
    with tempfile.TemporaryDirectory() as name:
        storage = open_storage(name)
        storage.create("x", content)
        if not cached:
            with Path(name, "x").open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        view = in_memory(place, bytes(length))
        count = storage.read_into("x", start, view)
        assert bytes(view[:count]) == content[start : start + length]


def test_aligned_memory_goes_to_the_disk_as_it_lies(tmp_path, monkeypatch):
    """Nothing but the ends is copied on the way; what is taken from elsewhere says so here."""
    if not knows_direct(tmp_path):
        return
    body = in_memory(64, CONTENT[: 40 * BLOCK_BYTES])
    head = memoryview(bytes(BLOCK_BYTES + 64))
    assert direct.phase_of(body) == len(head) % BLOCK_BYTES
    seen = []
    pwrite = os.pwrite

    def recorded(descriptor, data, offset):
        seen.append((len(data), bool(fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT)))
        return pwrite(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", recorded)
    assert written(tmp_path / "x", [head, body]) == bytes(head) + bytes(body)
    assert all(past_the_cache for _, past_the_cache in seen)
    copied = sum(size for size, _ in seen if size <= 2 * BLOCK_BYTES)
    assert copied <= 4 * BLOCK_BYTES


@pytest.mark.parametrize("at", ["flag", "write", "later write"])
def test_a_file_system_that_refuses_gets_ordinary_writes(tmp_path, monkeypatch, at):
    pwrite, calls = os.pwrite, []

    def refusing(descriptor, data, offset):
        flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
        calls.append(flags & os.O_DIRECT)
        if flags & os.O_DIRECT and len(calls) > (at == "later write"):
            raise OSError(errno.EINVAL, "Invalid argument")
        return pwrite(descriptor, data, offset)

    fcntl_ = fcntl.fcntl

    def no_flag(descriptor, command, value=0):
        if command == fcntl.F_SETFL and value & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return fcntl_(descriptor, command, value)

    if at == "flag":
        monkeypatch.setattr(fcntl, "fcntl", no_flag)
    monkeypatch.setattr(os, "pwrite", refusing)
    content = CONTENT[:100_001]
    assert written(tmp_path / "x", [in_memory(64, content)]) == content


def test_an_invalid_argument_of_another_kind_is_no_endless_loop(tmp_path, monkeypatch):
    def invalid(descriptor, data, offset):
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "pwrite", invalid)
    with pytest.raises(OSError, match="Invalid argument"):
        written(tmp_path / "x", [in_memory(0, CONTENT)])


def test_short_writes_go_on_where_they_ended(tmp_path, monkeypatch):
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda descriptor, data, at: pwrite(descriptor, data[:BLOCK_BYTES], at))
    assert written(tmp_path / "x", [in_memory(64, CONTENT[:50_000])]) == CONTENT[:50_000]


def test_short_and_refused_reads_are_finished(tmp_path, monkeypatch):
    storage = open_storage(str(tmp_path))
    storage.create("x", CONTENT[:50_000])
    preadv = os.preadv

    def grudging(descriptor, views, offset, flags=0):
        if flags or fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT:
            raise OSError(errno.EOPNOTSUPP if flags else errno.EINVAL, "no")
        return preadv(descriptor, [views[0][:1000]], offset)

    monkeypatch.setattr(os, "preadv", grudging)
    view = in_memory(0, bytes(50_000))
    assert storage.read_into("x", 0, view) == 50_000
    assert view == CONTENT[:50_000]
