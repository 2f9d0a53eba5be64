"""What a person pinned stays, whatever the rules and the sweep say."""

from __future__ import annotations

import pytest

from orch_policies.retention import Rules
from orch_workers.checkpoint import Catalog, Chain, RestorePoint, open_storage
from orch_workers.checkpoint.errors import NotFound
from support import snapshots

G1, G2 = (1, 1), (1, 2)


@pytest.fixture
def catalog(tmp_path):
    catalog = Catalog(open_storage(str(tmp_path / "storage")), "digits-1a2b")
    catalog.begin(Chain.root(G1))
    return catalog


@pytest.fixture
def commit_at(catalog, tmp_path):
    def act(generation, step):
        state = snapshots.state(step, size=10)
        return snapshots.commit_state(catalog, tmp_path / "slot", state, generation=generation, step=step)

    return act


def steps(catalog):
    return [p.step for p in catalog.restore_points()]


def test_a_pinned_checkpoint_outlives_the_rules_until_it_is_unpinned(catalog, commit_at):
    for step in range(1, 6):
        commit_at(G1, step)
    assert catalog.pin(RestorePoint(G1, 2), "the paper's figure 3")
    done = catalog.retain(Rules(last=1))
    assert [p.step for p in done.removed] == [4, 3, 1]
    assert {p.step: reason for p, reason in done.kept.items()}[2] == "pinned"
    assert {p[:2]: note for p, note in catalog.pins().items()} == {(G1, 2): "the paper's figure 3"}
    assert catalog.unpin(RestorePoint(G1, 2))
    assert not catalog.unpin(RestorePoint(G1, 2))
    catalog.retain(Rules(last=1))
    assert steps(catalog) == [5]


def test_the_first_note_stays(catalog, commit_at):
    commit_at(G1, 1)
    assert catalog.pin(RestorePoint(G1, 1), "first")
    assert not catalog.pin(RestorePoint(G1, 1), "second")
    assert list(catalog.pins().values()) == ["first"]


def test_what_is_not_there_cannot_be_pinned_and_leaves_no_pin(catalog):
    with pytest.raises(NotFound, match="no such checkpoint to pin"):
        catalog.pin(RestorePoint(G1, 7))
    assert catalog.pins() == {}


def test_a_pin_that_does_not_read_pins_all_the_same(catalog, commit_at):
    commit_at(G1, 1)
    catalog.storage.create(catalog.pin_path(G1, 1), b"{")
    assert list(catalog.pins().values()) == ["its pin does not read"]
    commit_at(G1, 2)
    assert [p.step for p in catalog.retain(Rules(last=1)).kept] == [2, 1]


def test_the_sweep_spares_what_is_pinned_off_the_chain(catalog, commit_at):
    for step in (1, 2, 3):
        commit_at(G1, step)
    catalog.pin(RestorePoint(G1, 2))
    catalog.begin_generation(G2, parent=G1, restored_step=1)
    commit_at(G2, 9)
    catalog.sweep()
    assert [(p.generation, p.step) for p in catalog.committed()] == [(G2, 9), (G1, 2), (G1, 1)]
