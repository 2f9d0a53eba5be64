"""Retention on S3: every rule at once, a pin that comes meanwhile, and what a save costs in requests."""

from __future__ import annotations

from collections import Counter

import pytest

from orch_policies.retention import Best, Rules
from orch_workers.checkpoint import Catalog
from orch_workers.checkpoint.retaining import Retainer
from support import snapshots

pytestmark = pytest.mark.integration

G1 = (1, 1)
RULES = Rules(last=2, every_hours=1000, every_steps=50, best=Best("loss", "min", 1))
CALLS = ("list", "read", "size", "delete")


@pytest.fixture
def catalog(s3):
    catalog = Catalog(s3, "digits-1a2b")
    catalog.begin_generation(G1)
    return catalog


@pytest.fixture
def save(catalog, tmp_path):
    def act(step):
        saved = snapshots.state(step, size=10)
        saved.more = {"metrics": {"loss": abs(step - 70)}}
        snapshots.commit_state(catalog, tmp_path / "slot", saved, generation=G1, step=step)
        return next(point for point in catalog.restore_points() if point.step == step)

    return act


@pytest.fixture
def asked(catalog, monkeypatch):
    """What is asked of storage, by kind of call."""
    calls = Counter()
    for name in CALLS:
        real = getattr(catalog.storage, name)

        def counted(*given, real=real, name=name, **more):
            calls[name] += 1
            return real(*given, **more)

        monkeypatch.setattr(catalog.storage, name, counted)
    return calls


def test_all_rules_and_a_pin(catalog, save):
    retainer = Retainer(catalog, RULES)
    for step in range(10, 130, 10):
        point = save(step)
        if step == 30:
            catalog.pin(point, "for the test")
        if step == 90:
            retainer = Retainer(catalog, RULES)  # an agent's successor
        retainer.after(point)
    kept = catalog.judge(RULES).kept
    assert {point.step: reason for point, reason in kept.items()} == {
        120: "newest verified, last 2",
        110: "last 2",
        100: "every 50 steps",
        70: "best 1 by loss (min)",
        50: "every 50 steps",
        30: "pinned",
        10: "every 1000 h, every 50 steps",
    }
    assert [point.step for point in catalog.restore_points()] == [point.step for point in kept]
    left = {entry.path.split("/")[3] for entry in catalog.storage.list(catalog.path("shards"))}
    assert left == {f"{point.step:012d}" for point in kept}, "nothing of the others is left"


def test_what_a_save_costs(catalog, save, asked):
    retainer = Retainer(catalog, RULES)
    for step in (10, 20, 30):
        retainer.after(save(step))
    grows = save(50)
    asked.clear()
    assert [point.step for point in retainer.after(grows).removed] == [20], (
        "one goes, as in every steady state"
    )
    assert asked["read"] == 1, "its own manifest, and no other again"
    assert asked["list"] <= 3, "the generations, and the parts of the one that goes"
    assert asked["size"] <= 4
