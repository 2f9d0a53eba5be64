"""Shared memory that is too small, missing, full or filling up: a warning, a file elsewhere, and still correct."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from orch_workers.checkpoint import Catalog, Staging, commit, find_and_restore, open_storage
from orch_workers.checkpoint import staging as stagings
from orch_workers.checkpoint.chain import Chain
from orch_workers.training.slots import Slot
from support import snapshots

ROOM_BYTES = 1 << 20
"""Of the shared memory in these tests; containers give 64 MiB."""
SMALL_BYTES, LARGE_BYTES = 300 << 10, 800 << 10


@pytest.fixture
def shm(tmp_path, monkeypatch):
    """A real tmpfs of a megabyte where one may be mounted, else the error that it would give."""
    folder = tmp_path / "shm"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={ROOM_BYTES}", "tmpfs", str(folder)]
    mounted = os.getuid() == 0 and subprocess.run(mount, capture_output=True, check=False).returncode == 0
    if not mounted:
        monkeypatch.setattr(os, "posix_fallocate", limited(folder, os.posix_fallocate))
    yield folder
    if mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def limited(folder, real):
    def posix_fallocate(descriptor, offset, length):
        where = str(Path(f"/proc/self/fd/{descriptor}").readlink())
        if where.startswith(f"{folder}/"):
            used = sum(
                path.stat().st_size for path in folder.rglob("*") if path.is_file() and str(path) != where
            )
            if used + offset + length > ROOM_BYTES:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor, offset, length)

    return posix_fallocate


class Staged:
    def __init__(self, shm, tmp_path):
        self.warnings = []
        self.memory, self.disk = shm / "job" / "rank-0", tmp_path / "elsewhere" / "rank-0"
        self.catalog = Catalog(open_storage(str(tmp_path / "storage")), "job")
        self.target = tmp_path / "restored"
        self.make()

    def make(self):
        self.staging = Staging(self.memory, fallback=self.disk, warn=self.warnings.append)

    def save(self, step, size_bytes):
        given = self.staging.acquire(size_bytes)
        snapshots.fill(given.path, snapshots.state(step), generation=(1, 1), step=step)
        self.staging.ready(given.index)
        return given.path

    def assert_whole(self, step):
        """What was saved last is restored from memory and, committed, from storage."""
        found = self.staging.newest_ready(Chain.root((1, 1)))
        assert found.step == step
        assert snapshots.arrays_in(found.path) == snapshots.arrays_of(snapshots.state(step))
        self.catalog.begin_generation((1, 1))
        slot = Slot(found.path)
        commit(self.catalog, slot)
        slot.close()
        stored = find_and_restore(self.catalog, 0, self.target)
        assert stored.point.step == step
        assert snapshots.arrays_in(stored.path) == snapshots.arrays_of(snapshots.state(step))


@pytest.fixture
def staged(shm, tmp_path):
    return Staged(shm, tmp_path)


def test_shared_memory_with_room_is_used_without_a_word(staged):
    for step in (1, 2, 3):
        assert staged.save(step, SMALL_BYTES).startswith(str(staged.memory))
    staged.assert_whole(3)
    assert staged.warnings == []


def test_shared_memory_that_is_too_small(staged):
    for step in (1, 2, 3):
        assert staged.save(step, 4 * ROOM_BYTES).startswith(str(staged.disk))
    staged.assert_whole(3)
    [warning] = staged.warnings
    assert "has no room for a snapshot of 4194304 bytes (No space left on device)" in warning
    assert "larger /dev/shm" in warning


def test_shared_memory_with_room_for_one_slot_of_two(staged):
    assert staged.save(1, LARGE_BYTES).startswith(str(staged.memory))
    assert staged.save(2, LARGE_BYTES).startswith(str(staged.disk))
    staged.assert_whole(2)
    assert len(staged.warnings) == 1


def test_shared_memory_that_others_have_filled(staged):
    (staged.memory.parent / "others").write_bytes(bytes(ROOM_BYTES - (100 << 10)))
    assert staged.save(1, SMALL_BYTES).startswith(str(staged.disk))
    staged.assert_whole(1)


def test_shared_memory_that_fills_up_while_a_slot_grows(staged):
    staged.save(1, SMALL_BYTES)
    staged.save(2, SMALL_BYTES)
    assert staged.save(3, LARGE_BYTES).startswith(str(staged.disk))
    staged.assert_whole(3)
    assert [s.step for s in staged.staging.snapshots()] == [3, 2]
    staged.save(4, LARGE_BYTES)
    staged.assert_whole(4)


def test_a_restore_when_shared_memory_is_full(staged):
    (staged.memory.parent / "others").write_bytes(bytes(ROOM_BYTES - (100 << 10)))
    assert str(staged.staging.make_restore_file(SMALL_BYTES)).startswith(str(staged.disk))


@pytest.mark.parametrize("how", ["missing", "a file", "read-only"])
def test_shared_memory_that_cannot_be_used(tmp_path, how):
    shm = tmp_path / "none"
    with contextlib.ExitStack() as after:
        if how == "a file":
            shm.write_text("")
        elif how == "read-only":
            shm = tmp_path / "proc"
            shm.symlink_to("/proc/self")  # nobody, root included, can make anything there
        else:
            shm = tmp_path / "gone" / "deeper"
            shm.parent.write_text("")
            after.callback(shm.parent.unlink)
        staged = Staged(shm, tmp_path)
        assert staged.save(1, SMALL_BYTES).startswith(str(staged.disk))
        staged.assert_whole(1)
        [warning] = staged.warnings
        assert "cannot be used for snapshots" in warning
        assert "slower" in warning


def test_no_room_anywhere_is_an_error_and_the_next_try_finds_room(staged, monkeypatch):
    def full(descriptor, offset, length):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        with pytest.raises(OSError, match="No space left"):
            staged.staging.acquire(SMALL_BYTES)
    assert not list(staged.disk.glob("slot-*"))
    staged.save(1, SMALL_BYTES)
    staged.assert_whole(1)


def test_the_chain_is_noted_elsewhere_when_shared_memory_is_full(staged):
    staged.staging.save_lineage(Chain.root((1, 1)))
    with contextlib.suppress(OSError), (staged.memory.parent / "rest").open("wb", buffering=0) as rest:
        for _ in range(ROOM_BYTES // 4096):  # to the last page
            rest.write(bytes(4096))
    if shutil.disk_usage(staged.memory).total > ROOM_BYTES:  # no tmpfs of our own: refuse it by hand
        (staged.memory / "lineage.new").mkdir()
    staged.staging.save_lineage(Chain.root((1, 2)))
    assert staged.staging.load_lineage().generation == (1, 2)


def test_what_a_machine_that_lost_power_left_on_its_disk_is_not_believed(staged, tmp_path, monkeypatch):
    """The word READY may have reached the disk before the data."""
    staged.save(1, 4 * ROOM_BYTES)
    staged.make()
    assert staged.staging.newest_ready(Chain.root((1, 1))).step == 1  # the same start of the machine: adopted
    boot = tmp_path / "boot_id"
    boot.write_text("another start\n")
    monkeypatch.setattr(stagings, "BOOT_ID", boot)
    staged.make()
    assert staged.staging.snapshots() == []
    staged.save(2, 4 * ROOM_BYTES)
    staged.make()
    assert [s.step for s in staged.staging.snapshots()] == [2]
