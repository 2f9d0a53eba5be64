"""The two slots: who may have which, and what a later agent adopts."""

from __future__ import annotations

import errno
import stat
from pathlib import Path

import pytest

from orch_workers.checkpoint import Catalog, Chain, Staging, commit, find_and_restore, open_storage
from orch_workers.checkpoint.staging import RESTORE_INDEX
from orch_workers.training.slots import Slot, SlotDamagedError
from support import snapshots

G1, G2 = (1, 1), (1, 2)
SIZE = 1 << 20
CHAIN = Chain.root(G1)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "job" / "rank-0"


@pytest.fixture
def staging(folder):
    return Staging(folder)


def save(staging, step, *, generation=G1, seed=None, size_bytes=SIZE):
    given = staging.acquire(size_bytes)
    assert given is not None
    saved = snapshots.state(step if seed is None else seed)
    snapshots.fill(given.path, saved, generation=generation, step=step)
    return staging.ready(given.index)


def test_slots_alternate_and_the_newest_stays(staging):
    for step in range(1, 6):
        assert save(staging, step).step == step
        assert staging.newest_ready(CHAIN).step == step
    assert [s.step for s in staging.snapshots()] == [5, 4]


@pytest.fixture
def files(staging):
    """Tells how many different slot files there have been so far; holds them open, so that no inode is used twice."""
    opened = {}

    def count():
        for path in staging.folder.glob("slot-*"):
            if path.stat().st_ino not in opened:
                opened[path.stat().st_ino] = path.open("rb")
        return len(opened)

    yield count
    for file in opened.values():
        file.close()


def test_the_slot_files_are_used_again(staging, files):
    for step in range(6):
        save(staging, step)
        files()
    assert files() == 2


def test_a_description_that_grows_with_the_digits_of_the_step_needs_no_new_file(staging, files):
    """A new file, its pages touched for the first time, cost training six copies at step 10 (seen)."""
    for step in range(6, 14):
        save(staging, step, size_bytes=SIZE + len(str(step)))
        files()
    assert files() == 2


def test_a_larger_state_gets_a_new_file_and_the_old_mapping_stays_whole(staging):
    save(staging, 1)
    first = Slot(staging.newest_ready(CHAIN).path)
    save(staging, 2)
    given = staging.acquire(4 * SIZE)
    assert Slot(given.path).capacity_bytes >= 4 * SIZE
    assert first.read()[0].step == 1
    first.close()


def test_busy_while_both_are_held(staging):
    first, second = save(staging, 1), save(staging, 2)
    staging.hold(first.index, "upload")
    staging.hold(second.index, "restore")
    assert staging.acquire(SIZE) is None
    staging.release(second.index, "restore")
    given = staging.acquire(SIZE)
    assert given.index == second.index
    assert staging.acquire(SIZE) is None  # one at a time
    assert staging.held(first.index) == {"upload"}


def test_two_holds_on_one_slot(staging):
    first = save(staging, 1)
    save(staging, 2)
    staging.hold(first.index, "upload")
    staging.hold(first.index, "restore")
    staging.release(first.index, "upload")
    assert staging.acquire(SIZE).index != first.index


def test_a_process_that_died_while_filling_leaves_nothing(staging):
    save(staging, 1)
    given = staging.acquire(SIZE)
    snapshots.fill(given.path, snapshots.state(), generation=G1, step=2, torn=True)
    with pytest.raises(SlotDamagedError):
        staging.ready(given.index)
    assert staging.newest_ready(CHAIN).step == 1
    staging.abandon()
    assert save(staging, 3).index == given.index


def test_a_process_that_died_before_it_could_say_saved(staging):
    given = staging.acquire(SIZE)
    snapshots.fill(given.path, snapshots.state(), generation=G1, step=2)
    assert staging.newest_ready(CHAIN) is None
    staging.abandon()
    assert staging.writing is None
    assert staging.newest_ready(CHAIN).step == 2


def test_a_slot_that_was_not_given_away_is_not_taken_back(staging):
    with pytest.raises(SlotDamagedError, match="not given away"):
        staging.ready(0)


def test_only_what_lies_on_the_chain_is_restored(staging):
    save(staging, 10)
    save(staging, 20)
    chain = CHAIN.fork(G2, G1, 10)
    assert staging.newest_ready(chain).step == 10
    assert staging.newest_ready(Chain.root(G2)) is None


def test_the_next_agent_adopts_what_is_whole(staging, folder):
    save(staging, 1)
    given = staging.acquire(SIZE)
    snapshots.fill(given.path, snapshots.state(), generation=G1, step=2, torn=True)
    staging.save_lineage(CHAIN)

    later = Staging(folder)
    assert [s.step for s in later.snapshots()] == [1]
    assert later.load_lineage() == CHAIN
    assert later.acquire(SIZE).index == given.index


@pytest.mark.parametrize("content", [b"", b"x", b"\0" * 5000, b"ORCHSLOT" + b"\xff" * 5000])
def test_files_that_are_no_slots_are_only_room(folder, content):
    folder.mkdir(parents=True)
    (folder / "slot-0").write_bytes(content)
    (folder / "lineage.json").write_bytes(content)
    staging = Staging(folder)
    assert staging.snapshots() == []
    assert staging.load_lineage() is None
    save(staging, 1)
    save(staging, 2)
    assert len(staging.snapshots()) == 2


def test_restored_from_storage_counts_as_a_snapshot_until_a_newer_is_there(staging, folder, tmp_path):
    catalog = Catalog(open_storage(str(tmp_path / "storage")), "job")
    catalog.begin_generation(G1)
    slot = snapshots.make(tmp_path / "slot", snapshots.state(5), step=5)
    commit(catalog, slot)
    slot.close()
    chain = catalog.begin_generation(G2, G1, 5)

    found = find_and_restore(catalog, 0, staging.make_restore_file)
    assert found.path == str(staging.restore_path)
    assert staging.restored().step == 5
    assert Staging(folder).newest_ready(chain).index == RESTORE_INDEX
    staging.hold(RESTORE_INDEX, "restore")
    save(staging, 6, generation=G2)
    assert staging.restore_path.exists()  # still being read
    staging.release(RESTORE_INDEX, "restore")
    assert not (folder / "restore").exists()
    assert staging.newest_ready(chain).step == 6


def test_folders_are_private(staging, folder):
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_the_sweep_leaves_nothing(staging, folder):
    save(staging, 1)
    staging.save_lineage(CHAIN)
    staging.sweep()
    staging.sweep()
    assert not folder.parent.exists()


def test_shared_memory_that_is_missing(tmp_path):
    warnings = []
    (tmp_path / "shm").write_text("no folder")
    staging = Staging(tmp_path / "shm" / "rank-0", fallback=tmp_path / "disk", warn=warnings.append)
    assert save(staging, 1).path.startswith(str(tmp_path / "disk"))
    [warning] = warnings
    assert "cannot be used for snapshots" in warning
    with pytest.raises(OSError, match="cannot be used for snapshots"):
        Staging(tmp_path / "shm" / "rank-0")


def test_shared_memory_that_is_too_small(folder, tmp_path, monkeypatch):
    warnings = []
    create = Slot.create

    def small(path, capacity_bytes):
        if path.startswith(str(folder)):
            raise OSError(errno.ENOSPC, "No space left on device")
        create(path, capacity_bytes)

    monkeypatch.setattr(Slot, "create", staticmethod(small))
    staging = Staging(folder, fallback=tmp_path / "disk", warn=warnings.append)
    save(staging, 1)
    save(staging, 2)
    [warning] = warnings
    assert "larger /dev/shm" in warning
    assert {p.name for p in (tmp_path / "disk").iterdir()} == {"boot", "slot-0", "slot-1"}
    later = Staging(folder, fallback=tmp_path / "disk", warn=warnings.append)
    assert [s.step for s in later.snapshots()] == [2, 1]
    later.sweep()
    assert not (tmp_path / "disk").exists()
    with pytest.raises(OSError, match="No space left"):
        Staging(folder).acquire(SIZE)


def test_a_snapshot_that_was_written_over_is_not_restored(staging):
    """The training process can write to its slots at any time, with a stray pointer for instance."""
    save(staging, 1)
    newest = save(staging, 2)
    with Path(newest.path).open("r+b") as file:
        file.write(b"\xff" * 64)
    assert staging.newest_ready(CHAIN).step == 1
    assert [s.step for s in staging.snapshots()] == [1]
