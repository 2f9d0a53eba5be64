"""The checkpoint at which a newer generation went on is gone: by `keep`, by an older agent, by a person."""

from __future__ import annotations

import pytest

from orch_workers.checkpoint import Catalog, NothingRestorable, RestorePoint, find_and_restore
from orch_workers.checkpoint.local import LocalStorage
from support import snapshots

A, B, C = (1, 1), (2, 1), (3, 1)


@pytest.fixture
def catalog(tmp_path):
    made = Catalog(LocalStorage(tmp_path / "storage"), "job")
    made.begin_generation(A)
    return made


@pytest.fixture
def save(catalog, tmp_path):
    def save(generation, *steps):
        for step in steps:
            state = snapshots.state(step)
            snapshots.commit_state(catalog, tmp_path / "slot", state, generation=generation, step=step)

    return save


@pytest.fixture
def restored(catalog, tmp_path):
    def restored(**more):
        return find_and_restore(catalog, 0, tmp_path / "restored", **more)

    return restored


def test_what_came_after_it_is_restored_and_forked_from(catalog, save, restored):
    """As in every long life: `keep` takes the fork away once there is something newer."""
    save(A, 5, 9)
    catalog.begin_generation(B, A, 5)
    save(B, 7, 8)
    catalog.remove(RestorePoint(A, 5))
    catalog.remove(RestorePoint(B, 7))
    assert restored().point[:2] == (B, 8)
    chain = catalog.begin_generation(C, B, 8)
    assert not chain.admits(A, 9)
    assert [point[:2] for point in catalog.restore_points()] == [(B, 8)]


def test_before_anything_new_is_saved_the_next_older_one_is_restored(catalog, save, restored):
    save(A, 3, 5, 9)
    catalog.begin_generation(B, A, 5)
    catalog.remove(RestorePoint(A, 5))
    found = restored()
    assert (found.point[:2], found.rejected) == ((A, 3), ())
    catalog.begin_generation(C, A, 3)
    assert [point[:2] for point in catalog.restore_points()] == [(A, 3)]


@pytest.mark.parametrize("committed_before", [True, False])
def test_where_nothing_is_left_on_the_chain_nothing_is_started_over(
    catalog, save, restored, committed_before
):
    """An older agent that works on has taken it away before it learned of its successor, and saved other steps."""
    save(A, 5, 9, 12)
    catalog.begin_generation(B, A, 5)
    catalog.remove(RestorePoint(A, 5))
    with pytest.raises(NothingRestorable, match=r"nothing was started from scratch") as caught:
        restored(committed_before=committed_before)
    assert [one[:2] for one in caught.value.rejected] == [(A, 12), (A, 9)]
    assert "000002.000001 has saved nothing and went on from step 5, which was removed" in str(caught.value)
    assert catalog.quarantined() == {}, "nothing is wrong with them"


def test_who_was_told_to_start_over_and_has_saved_nothing_begins_anew(catalog, save, restored):
    save(A, 5)
    catalog.begin_generation(B)
    assert restored() is None


def test_a_state_that_was_in_memory_alone_is_no_checkpoint(catalog, restored):
    """Gone with its machine before anything was in storage: there is nothing to bring back."""
    catalog.begin_generation(B, A, 5)
    assert restored() is None
