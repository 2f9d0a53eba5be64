"""Retention on a storage: what it asks of it, what it looks at again before it deletes, and what it survives."""

from __future__ import annotations

import time
from collections import Counter
from types import SimpleNamespace

import pytest

from orch_policies.retention import HOUR_US, Best, Rules
from orch_workers.checkpoint import Catalog, Chain, RestorePoint, writer
from orch_workers.checkpoint.errors import StorageUnavailable
from orch_workers.checkpoint.local import LocalStorage
from orch_workers.checkpoint.retaining import HINT_AFTER, LOOKED_S_MAX, RELIST_S, RELIST_SAVES, Retainer
from support import snapshots

G1, G2 = (1, 1), (1, 2)


class Watched(LocalStorage):
    """Counts calls by what they are and the folder they are about; `refuse(path)` may raise."""

    def __init__(self, root):
        super().__init__(root)
        self.calls = Counter()
        self.refuse = lambda what, path: None

    def _saw(self, what, path):
        folder = path.split("/")[1] if "/" in path else path
        self.calls[f"{what} {folder}"] += 1
        self.refuse(what, path)

    def read(self, path, start=None, end=None):
        self._saw("read", path)
        return super().read(path, start, end)

    def size(self, path):
        self._saw("look", path)
        return super().size(path)

    def list(self, prefix=""):
        self._saw("list", prefix)
        return super().list(prefix)

    def delete(self, path):
        self._saw("delete", path)
        super().delete(path)


class Bench:
    """A job's writer with a clock of its own; `keeps` commits and retains, as the keeper does."""

    def __init__(self, tmp_path, monkeypatch):
        self._folder = tmp_path
        self.storage = Watched(tmp_path / "storage")
        self.catalog = Catalog(self.storage, "digits-1a2b")
        self.catalog.begin(Chain.root(G1))
        self.hours, self.elapsed_s = 100.0, 0.0
        clock = SimpleNamespace(monotonic=time.monotonic, time_ns=lambda: self.now_us() * 1000)
        monkeypatch.setattr(writer, "time", clock)

    def now_us(self):
        return int(self.hours * HOUR_US)

    def retainer(self, rules):
        return Retainer(self.catalog, rules, now_us=self.now_us, monotonic=lambda: self.elapsed_s)

    def commit(self, step, generation=G1, **metrics):
        saved = snapshots.state(step, size=10)
        saved.more = {"metrics": metrics}
        slot = self._folder / "slot"
        done = snapshots.commit_state(self.catalog, slot, saved, generation=generation, step=step)
        return RestorePoint(done.generation, done.step)

    def steps(self):
        return [point.step for point in self.catalog.restore_points()]


@pytest.fixture
def bench(tmp_path, monkeypatch):
    return Bench(tmp_path, monkeypatch)


def asked(bench, act):
    """What `act` asks of storage, by kind of call."""
    bench.storage.calls.clear()
    act()
    return dict(bench.storage.calls)


def test_all_rules_at_once_over_a_long_run_with_restarts_of_the_writer(bench):
    rules = Rules(last=2, every_hours=2, every_steps=40, best=Best("loss", "min", 1), min_age_s=900)
    retainer = bench.retainer(rules)
    for step in range(10, 210, 10):
        bench.hours += 0.5
        if step % 50 == 0:
            retainer = bench.retainer(rules)  # an agent's successor knows nothing but what is in storage
        retainer.after(bench.commit(step, loss=abs(step - 75)))
    assert bench.steps() == [
        200,  # last, every 40 steps
        190,  # last
        170,  # every 2 h
        160,  # every 40 steps
        130,  # every 2 h
        120,  # every 40 steps
        90,  # every 2 h
        80,  # every 40 steps, and the best
        50,  # every 2 h
        40,  # every 40 steps
        10,  # the oldest: of its hours, and of the first 40 steps
    ]
    kept = {point.step: reason for point, reason in bench.retainer(rules).judge().kept.items()}
    assert kept[80] == "every 40 steps, best 1 by loss (min)"
    assert kept[190] == "last 2"


def test_a_save_that_pushes_nothing_out_asks_nothing(bench):
    retainer = bench.retainer(Rules(last=9))
    retainer.after(bench.commit(1))
    point = bench.commit(2)
    assert asked(bench, lambda: retainer.after(point)) == {}


def test_no_manifest_is_read_twice(bench):
    retainer = bench.retainer(Rules(last=9, best=Best("loss")))
    for step in (1, 2, 3):
        bench.commit(step, loss=step)
    assert asked(bench, lambda: retainer.after(bench.commit(4, loss=4)))["read manifests"] == 4
    point = bench.commit(5, loss=5)
    assert asked(bench, lambda: retainer.after(point)) == {"read manifests": 1}
    bench.elapsed_s += RELIST_S + 1
    again = asked(bench, lambda: retainer.after(point))
    assert "read manifests" not in again
    assert again["list manifests"] == 1


def test_what_goes_is_looked_at_right_before(bench):
    retainer = bench.retainer(Rules(last=1))
    retainer.after(bench.commit(1))
    point = bench.commit(2)
    calls = asked(bench, lambda: retainer.after(point))
    assert {name: calls[name] for name in ("list generations", "look pins", "look quarantine")} == {
        "list generations": 1,
        "look pins": 1,
        "look quarantine": 1,
    }
    assert "delete manifests" in calls
    assert "list manifests" not in calls


@pytest.mark.parametrize("how", ["pin", "quarantine"])
def test_what_a_person_pins_or_calls_damaged_meanwhile_stays(bench, how):
    retainer = bench.retainer(Rules(last=1))
    point = bench.commit(1)
    retainer.after(point)
    getattr(bench.catalog, how)(point, "for the test")
    assert retainer.after(bench.commit(2)).removed == []
    assert RestorePoint(G1, 1) in [RestorePoint(*p[:2]) for p in bench.catalog.committed()]


def test_an_unpinned_one_goes_once_that_is_seen(bench):
    retainer = bench.retainer(Rules(last=1))
    first = bench.commit(1)
    bench.catalog.pin(first)
    retainer.after(first)
    bench.catalog.unpin(first)
    for step in range(2, RELIST_SAVES + 3):
        retainer.after(bench.commit(step))
    assert bench.steps() == [RELIST_SAVES + 2]


def test_nothing_goes_once_a_newer_generation_has_begun(bench):
    """It may have restored just what this writer's rules do not ask for any more."""
    retainer = bench.retainer(Rules(last=1))
    retainer.after(bench.commit(1))
    second = bench.commit(2)
    bench.catalog.begin_generation(G2, parent=G1, restored_step=1)
    assert retainer.after(second).removed == []
    assert bench.steps() == [1]
    retainer.after(bench.commit(3, G2))
    assert bench.steps() == [3], "and it goes for the generation that is the newest now"


def test_a_look_that_took_long_counts_for_nothing(bench):
    """As when the process was stopped between looking and deleting, and a newer generation has begun since."""
    retainer = bench.retainer(Rules(last=1))
    retainer.after(bench.commit(1))
    second = bench.commit(2)

    def stopped(what, path):
        if what == "look" and "/quarantine/" in path:
            bench.storage.refuse = lambda what, path: None
            bench.elapsed_s += LOOKED_S_MAX + 1
            bench.catalog.begin_generation(G2, parent=G1, restored_step=1)

    bench.storage.refuse = stopped
    assert retainer.after(second).removed == []
    assert bench.steps() == [1]


def test_a_storage_that_is_always_slow_keeps_too_much_rather_than_too_little(bench):
    retainer = bench.retainer(Rules(last=1))
    retainer.after(bench.commit(1))

    def slow(what, path):
        bench.elapsed_s += LOOKED_S_MAX

    bench.storage.refuse = slow
    assert retainer.after(bench.commit(2)).removed == []
    assert bench.steps() == [2, 1]


def test_a_deletion_that_fails_is_told_when_it_is_done(bench):
    retainer = bench.retainer(Rules(last=1))
    for step in (1, 2):
        bench.commit(step)

    def away(what, path):
        if what == "delete" and "000000000002" in path:
            raise StorageUnavailable("a test says no")

    bench.storage.refuse = away
    with pytest.raises(StorageUnavailable):
        retainer.after(bench.commit(3))
    bench.storage.refuse = lambda what, path: None
    assert [point.step for point in retainer.after(bench.commit(4)).removed] == [3, 2, 1]
    assert bench.steps() == [4]


def test_many_that_go_at_once_do_not_hold_up_the_next_save(bench, monkeypatch):
    monkeypatch.setattr("orch_workers.checkpoint.retaining.REMOVALS_PER_SAVE_MAX", 3)
    for step in range(1, 9):
        bench.commit(step)
    retainer = bench.retainer(Rules(last=1))
    assert [p.step for p in retainer.after(bench.commit(9)).removed] == [3, 2, 1], "the oldest first"
    assert [p.step for p in retainer.after(bench.commit(10)).removed] == [6, 5, 4]


def test_nothing_goes_while_manifests_are_not_known(bench, monkeypatch):
    monkeypatch.setattr("orch_workers.checkpoint.retaining.READS_PER_SAVE_MAX", 3)
    for step in range(1, 6):
        bench.commit(step, loss=step)
    retainer = bench.retainer(Rules(last=1, best=Best("loss")))
    assert retainer.after(bench.commit(6, loss=6)).removed == []
    assert retainer.after(bench.commit(7, loss=7)).removed == []
    retainer.after(bench.commit(8, loss=8))
    assert bench.steps() == [8, 1]


def test_a_manifest_that_does_not_read_is_none_of_the_best_and_stays_for_the_restore_to_find(bench):
    for step in (1, 2, 3):
        bench.commit(step, loss=step)
    damaged = bench.catalog.manifest_path(G1, 2)
    bench.storage.delete(damaged)
    bench.storage.create(damaged, b"{")
    kept = bench.catalog.judge(Rules(last=2, best=Best("loss"))).kept
    assert {point.step: reason for point, reason in kept.items()} == {
        3: "newest verified, last 2",
        2: "last 2",
        1: "best 1 by loss (min)",
    }


def test_a_metric_that_no_checkpoint_has_is_said(bench):
    retainer = bench.retainer(Rules(last=9, best=Best("val_loss")))
    for step in range(1, HINT_AFTER):
        retainer.after(bench.commit(step, loss=1.0))
        assert retainer.hint == ""
    retainer.after(bench.commit(HINT_AFTER, loss=1.0))
    assert "'val_loss'" in retainer.hint
    assert "run.step(val_loss=" in retainer.hint
    retainer.after(bench.commit(HINT_AFTER + 1, val_loss=1.0))
    assert retainer.hint == ""
