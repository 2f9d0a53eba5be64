"""A disk that is full, read-only or closed: training goes on, and the newest snapshot wins when it is mended."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import tracemalloc

import pytest

from orch_workers import patience
from orch_workers.checkpoint import find_and_restore
from orch_workers.checkpoint.local import LocalStorage
from orch_workers.checkpoint.staging import SLOTS
from support import snapshots
from support.server import wait_for
from support.workers import LIMIT_S, ROOM_BYTES, Failing, Stuck, good

DISK_BYTES = 1 << 20
HELD_MAX_BYTES = 4 << 20
"""What a keeper may hold in memory of its own while storage is away, however long: notes, no snapshots."""


class Disk:
    """A small file system of its own where one may be mounted, else the error that it would give."""

    def __init__(self, folder, monkeypatch):
        folder.mkdir()
        self.folder, self._patch = folder, monkeypatch
        self.storage = LocalStorage(folder / "storage")
        mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)]
        self.is_real = (
            os.getuid() == 0 and not subprocess.run(mount, capture_output=True, check=False).returncode
        )

    def fails(self, number):
        """From now on with this errno; 0: no more."""
        if number == 0:
            self._patch.undo()
        if number and (not self.is_real or number == errno.EACCES):  # root may write everywhere
            real = os.open

            def refuse(path, flags, *more, **named):
                if flags & os.O_CREAT and str(path).startswith(str(self.folder)):
                    raise OSError(number, os.strerror(number))
                return real(path, flags, *more, **named)

            self._patch.setattr(os, "open", refuse)
        elif number == errno.ENOSPC:
            (self.folder / "others").write_bytes(bytes(shutil.disk_usage(self.folder).free - (8 << 10)))
        elif number == errno.EROFS:
            subprocess.run(["mount", "-o", "remount,ro", str(self.folder)], check=True)
        elif self.is_real:
            subprocess.run(["mount", "-o", "remount,rw", str(self.folder)], check=True)
            (self.folder / "others").unlink(missing_ok=True)

    def close(self):
        if self.is_real:
            subprocess.run(["umount", "-l", str(self.folder)], check=True)


@pytest.fixture
def disk(machine, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        made = Disk(tmp_path / "disk", patch)
        machine.storage = made.storage
        yield made
    made.close()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_disk_that_cannot_be_written(machine, disk, number):
    kept = machine.keeper().open()
    kept.begin()
    kept.keep(10, 20)
    disk.fails(number)
    kept.save(30)
    wait_for(
        "the trouble is told",
        lambda: "step 30 is not in storage" in kept.keeper.status()["storage_trouble"],
        LIMIT_S,
    )
    for step in (40, 50, 60):  # training goes on: there is always a slot, and the newest waits in the other
        kept.save(step)
    assert os.strerror(number) in kept.keeper.status()["storage_trouble"]
    disk.fails(0)
    assert kept.keeper.drain(LIMIT_S)
    assert kept.keeper.status()["storage_trouble"] == ""
    found = find_and_restore(kept.keeper.catalog, 0, machine.folder / "restored")
    assert (found.point.step, found.rejected) == (60, ())
    assert snapshots.arrays_in(found.path) == snapshots.arrays_of(snapshots.state(60, 10))
    assert {20, 60} <= {point.step for point in kept.keeper.catalog.restore_points()}
    assert not list(disk.folder.rglob(".tmp-*")), "what was half written is gone"


def test_a_restore_does_not_need_to_write(machine, disk):
    first = machine.keeper().open()
    first.begin()
    first.keep(10)
    first.stop()
    machine.moves_to("elsewhere")
    disk.fails(errno.EROFS)
    after = machine.keeper(attempt=2).open()
    assert after.begin().step == 10


def test_a_save_needs_no_storage_and_waits_for_none(machine):
    """While a call of storage hangs, slots are given and taken; what does not fit is skipped, not waited for."""
    kept = machine.keeper().open()
    kept.begin()
    machine.storage.mood = stuck = Stuck("shards")
    kept.save(1)
    assert stuck.reached.wait(LIMIT_S)
    kept.save(2)
    assert kept.keeper.acquire(ROOM_BYTES) is None
    assert not stuck.go.is_set()  # nothing has let go of storage meanwhile
    stuck.go.set()
    assert kept.keeper.drain(LIMIT_S)
    assert kept.committed[-1][1] == 2


def test_what_is_held_while_storage_is_away_has_a_limit(machine):
    kept = machine.keeper().open()
    kept.begin()
    machine.storage.mood = mood = Failing()
    kept.save(1)
    wait_for("a try", lambda: mood.seen, LIMIT_S)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for step in range(2, 60):
            kept.save(step)
        assert tracemalloc.get_traced_memory()[0] - before < HELD_MAX_BYTES
    finally:
        tracemalloc.stop()
    slots = list(kept.config.paths.snapshots.glob("slot-*"))
    assert len(slots) == SLOTS
    assert len(kept.keeper._filled) <= 1
    machine.storage.mood = good
    assert kept.keeper.drain(LIMIT_S)
    assert kept.committed[-1][1] == 59
    assert len(kept.committed) < 59, "what was overtaken by a newer one is not written"


def test_pauses_between_tries_grow_to_a_limit_and_differ(monkeypatch):
    monkeypatch.undo()
    nominal = [min(patience.RETRY_MIN_S * 2**tries, patience.RETRY_MAX_S) for tries in range(200)]
    drawn = [[patience.pause_s(tries + 1) for _ in range(20)] for tries in range(200)]
    for limit_s, pauses in zip(nominal, drawn, strict=True):
        assert all(limit_s * (1 - patience.RETRY_JITTER) <= pause <= limit_s for pause in pauses)
        assert len(set(pauses)) > 1
    assert max(map(max, drawn)) <= patience.RETRY_MAX_S


def test_storage_that_refuses_to_delete_loses_no_commit(machine, monkeypatch):
    """A bucket that grants no deletion: the checkpoint is told, and the older ones stay."""

    def no(path):
        from orch_workers.checkpoint.errors import StorageRefused

        raise StorageRefused(f"cannot delete {path}: no permission")

    monkeypatch.setattr(machine.storage, "delete", no)
    kept = machine.keeper(keep={"last": 1}).open()
    kept.begin()
    kept.keep(1, 2, 3)
    assert [step for _, step in kept.committed] == [1, 2, 3]
    assert kept.keeper.status()["storage_trouble"] == ""
    assert any("not deleted for now" in note or "no permission" in note for note in kept.notes)
