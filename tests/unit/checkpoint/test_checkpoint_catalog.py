"""Generations, the chain, retention and the sweep, on a local folder."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orch_policies.retention import Best, Rules
from orch_workers.checkpoint import (
    Catalog,
    Chain,
    CheckpointError,
    RestorePoint,
    Superseded,
    commit,
    find_and_restore,
    open_storage,
    write_rank,
)
from support import snapshots

G1, G2, G3 = (1, 1), (1, 2), (2, 1)


@pytest.fixture
def catalog(tmp_path):
    return Catalog(open_storage(str(tmp_path / "storage")), "digits-1a2b")


def commit_at(catalog, tmp_path, generation, step, **more):
    name = tmp_path / f"slot-{threading.get_ident()}"
    seed = generation[0] * 1000 + generation[1] * 100 + step
    saved = snapshots.state(seed, size=10)
    saved.more = more
    return snapshots.commit_state(catalog, name, saved, generation=generation, step=step)


def points(catalog):
    return [p[:2] for p in catalog.restore_points()]


# the chain


def test_chain_admits_ancestors_up_to_the_fork():
    chain = Chain.root(G1).fork(G2, G1, 100)
    assert chain.admits(G2, 10_000)
    assert chain.admits(G1, 100)
    assert not chain.admits(G1, 101)
    assert not chain.admits(G3, 1)
    chain = chain.fork(G3, G2, 150)
    assert chain.admits(G2, 150)
    assert not chain.admits(G2, 151)
    assert chain.admits(G1, 100)


def test_chain_that_goes_back_over_a_fork_leaves_the_younger_out():
    chain = Chain.root(G1).fork(G2, G1, 100).fork(G3, G1, 80)
    assert chain.admits(G1, 80)
    assert not chain.admits(G1, 81)
    assert not chain.admits(G2, 90)
    assert not chain.admits(G2, 101)


def test_chain_refuses_what_is_not_on_it():
    chain = Chain.root(G1).fork(G2, G1, 100)
    with pytest.raises(ValueError, match="not on the chain"):
        chain.fork(G3, G1, 101)
    with pytest.raises(ValueError, match="not newer"):
        chain.fork(G2, G1, 50)


@given(st.lists(st.tuples(st.integers(0, 10), st.integers(0, 60)), max_size=12))
def test_chain_survives_json_and_is_a_path(forks):
    """Against the definition: walk from the newest to the root, each fork cutting what is below it."""
    chain = Chain.root((1, 1))
    parents: dict[tuple[int, int], tuple[tuple[int, int], int]] = {}
    for number, (back, step) in enumerate(forks):
        known = [chain.generation, *(f.generation for f in chain.ancestors)]
        parent = known[back % len(known)]
        if chain.admits(parent, step):
            generation = (1, number + 2)
            chain = chain.fork(generation, parent, step)
            parents[generation] = (parent, step)
    assert Chain.from_json(chain.to_json()) == chain
    limits = {chain.generation: 1000}
    at, limit = chain.generation, 1000
    while at in parents:
        at, fork = parents[at]
        limit = min(limit, fork)
        limits[at] = limit
    for number in range(len(forks) + 2):
        for step in range(61):
            assert chain.admits((1, number), step) == (step <= limits.get((1, number), -1))


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"generation": "1.1", "parent": None, "restored_step": 0, "ancestors": []},
        {"generation": "000001.000001", "parent": None, "restored_step": -1, "ancestors": []},
        {"generation": "000001.000001", "parent": None, "restored_step": True, "ancestors": []},
        {"generation": "000001.000001", "parent": None, "restored_step": 0, "ancestors": [{}]},
        {"generation": "+00001.000001", "parent": None, "restored_step": 0, "ancestors": []},
    ],
)
def test_chain_refuses_documents_of_others(document):
    with pytest.raises((ValueError, KeyError)):
        Chain.from_json(document)


# generations


def test_a_generation_begins_once_and_again_the_same(catalog):
    assert catalog.chain() is None
    chain = catalog.begin_generation(G1)
    assert catalog.begin_generation(G1) == chain
    assert catalog.newest_generation() == G1
    later = catalog.begin_generation(G2, G1, 20)
    assert catalog.begin_generation(G2, G1, 20) == later
    assert catalog.chain() == later
    with pytest.raises(Superseded, match="from another state"):
        catalog.begin_generation(G2, G1, 21)
    with pytest.raises(Superseded, match="superseded"):
        catalog.begin_generation(G1)


def test_the_chain_kept_elsewhere_is_written_down_later(catalog):
    """Storage was away for two restarts: their ancestry is in the newest record all the same."""
    chain = catalog.begin_generation(G1)
    newest = chain.fork(G2, G1, 30).fork(G3, G2, 40)
    assert catalog.begin(newest) == newest
    assert catalog.chain() == newest
    assert catalog.chain().admits(G2, 40)


def test_no_generation_descends_from_nothing(catalog):
    with pytest.raises(CheckpointError, match="to descend from"):
        catalog.begin_generation(G2, G1, 20)


def test_nothing_is_committed_before_its_generation_began(catalog, tmp_path):
    with pytest.raises(CheckpointError, match="has not begun"):
        commit_at(catalog, tmp_path, G1, 5)


def test_the_chain_wins_whoever_wrote_first(catalog, tmp_path):
    catalog.begin_generation(G1)
    for step in (10, 20, 30):
        commit_at(catalog, tmp_path, G1, step)
    slot = snapshots.make(tmp_path / "late", snapshots.state(), generation=G1, step=25)
    catalog.begin_generation(G2, G1, 20)
    assert points(catalog) == [(G1, 20), (G1, 10)]
    with pytest.raises(Superseded, match="lies off the chain"):
        commit(catalog, slot)
    slot.close()
    commit_at(catalog, tmp_path, G2, 22)
    # A snapshot of before the fork may still be committed by whoever has it.
    commit_at(catalog, tmp_path, G1, 15)
    assert points(catalog) == [(G2, 22), (G1, 20), (G1, 15), (G1, 10)]
    assert find_and_restore(catalog, 0, tmp_path / "restore").point[:2] == (G2, 22)


def test_at_equal_step_the_newer_generation_comes_first(catalog, tmp_path):
    catalog.begin_generation(G1)
    commit_at(catalog, tmp_path, G1, 10)
    catalog.begin_generation(G2, G1, 10)
    commit_at(catalog, tmp_path, G2, 10)
    assert points(catalog) == [(G2, 10), (G1, 10)]


def test_two_writers_of_one_step_make_one_checkpoint(catalog, tmp_path):
    catalog.begin_generation(G1)
    barrier = threading.Barrier(4)
    results = []

    def write(number):
        saved = snapshots.state(number, size=10)
        slot = snapshots.make(tmp_path / f"slot-{number}", saved, generation=G1, step=7)
        barrier.wait(20)
        results.append((commit(catalog, slot).already, number))
        slot.close()

    threads = [threading.Thread(target=write, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(already for already, _ in results) == [False, True, True, True]
    found = find_and_restore(catalog, 0, tmp_path / "restore")
    everyone = [snapshots.arrays_of(snapshots.state(n, size=10)) for n in range(4)]
    assert snapshots.arrays_in(found.path) in everyone


def test_names_of_others_are_not_ours(catalog, tmp_path):
    catalog.begin_generation(G1)
    commit_at(catalog, tmp_path, G1, 5)
    for name in ("manifests/readme.txt", "manifests/000001.000001/5.json", "manifests/1.1/000000000005.json"):
        catalog.storage.create(catalog.path(name), b"{}")
    assert points(catalog) == [(G1, 5)]


@pytest.mark.parametrize("job", ["", "../x", "Big", "a/b", "x" * 64])
def test_a_job_id_cannot_leave_its_folder(catalog, job):
    with pytest.raises(ValueError, match="no job id"):
        Catalog(catalog.storage, job)


# retention and sweep


def everything(catalog):
    return {e.path.removeprefix(f"{catalog.job_id}/") for e in catalog.storage.list()}


def test_retention_keeps_the_newest_and_leaves_nothing_of_the_others(catalog, tmp_path):
    catalog.begin_generation(G1)
    for step in range(1, 8):
        commit_at(catalog, tmp_path, G1, step)
    done = catalog.retain(Rules(last=3))
    assert [p.step for p in done.kept] == [7, 6, 5]
    assert [p.step for p in done.removed] == [4, 3, 2, 1]
    assert points(catalog) == [(G1, 7), (G1, 6), (G1, 5)]
    assert len(everything(catalog)) == 1 + 3 * 3
    assert catalog.retain(Rules(last=3)).removed == []


def test_retention_never_takes_the_newest_verified(catalog, tmp_path):
    catalog.begin_generation(G1)
    for step in (1, 2, 3):
        commit_at(catalog, tmp_path, G1, step)
    catalog.quarantine(RestorePoint(G1, 3), "for the test")
    catalog.retain(Rules(last=0))
    assert points(catalog) == [(G1, 2)]
    assert [p[:2] for p in catalog.committed()] == [(G1, 3), (G1, 2)]


def test_retention_by_metric(catalog, tmp_path):
    catalog.begin_generation(G1)
    for step, loss in ((1, 0.5), (2, 0.1), (3, 0.3), (4, None)):
        commit_at(catalog, tmp_path, G1, step, metrics={"val_loss": loss})
    done = catalog.retain(Rules(last=1, best=Best("val_loss", "min", 1)))
    assert [p.step for p in done.kept] == [4, 2]


def test_a_removal_that_died_is_finished_by_the_sweep(catalog, tmp_path):
    catalog.begin_generation(G1)
    for step in (1, 2):
        commit_at(catalog, tmp_path, G1, step)
    catalog.storage.delete(catalog.manifest_path(G1, 1))
    assert points(catalog) == [(G1, 2)]
    assert catalog.sweep() == 2
    assert not {name for name in everything(catalog) if "000000000001" in name}
    assert find_and_restore(catalog, 0, tmp_path / "restore").point.step == 2


def test_the_sweep_spares_what_is_on_its_way(catalog, tmp_path):
    catalog.begin_generation(G1)
    for step in (1, 2):
        commit_at(catalog, tmp_path, G1, step)
    slot = snapshots.make(tmp_path / "slot", snapshots.state(9), generation=G1, step=3)
    write_rank(catalog, slot, rank=0, world_size=2)
    slot.close()
    assert catalog.sweep() == 0  # newer than the newest commit
    catalog.begin_generation(G2, G1, 3)
    assert catalog.sweep(protect=[(G1, 3)]) == 0  # adopted, being written
    assert catalog.sweep() == 2
    assert points(catalog) == [(G1, 2), (G1, 1)]


def test_what_lies_off_the_chain_goes_once_the_new_one_has_something(catalog, tmp_path):
    catalog.begin_generation(G1)
    for step in (10, 20):
        commit_at(catalog, tmp_path, G1, step)
    catalog.begin_generation(G2, G1, 10)
    assert catalog.sweep() == 0
    commit_at(catalog, tmp_path, G2, 12)
    catalog.sweep()
    assert [p[:2] for p in catalog.committed()] == [(G2, 12), (G1, 10)]
    assert not {name for name in everything(catalog) if "000000000020" in name}


def test_in_the_end_nothing_is_left(catalog, tmp_path):
    other = Catalog(catalog.storage, "other")
    other.begin_generation(G1)
    catalog.begin_generation(G1)
    commit_at(catalog, tmp_path, G1, 1)
    catalog.quarantine(RestorePoint(G1, 1), "for the test")
    catalog.delete_all()
    catalog.delete_all()
    assert [e.path for e in catalog.storage.list()] == ["other/generations/000001.000001.json"]
    assert not (catalog.storage.root / catalog.job_id).exists()
