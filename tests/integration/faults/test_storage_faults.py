"""S3 that fails in every way it can: training goes on, the newest snapshot wins, what was committed is intact."""

from __future__ import annotations

import os

import pytest

from orch_workers.checkpoint.errors import AlreadyExists, NotFound
from support.faults import BURSTS, FaultyProxy
from support.server import wait_for
from support.workers import LIMIT_S

pytestmark = pytest.mark.integration

SHARES = [float(share) for share in os.environ.get("ORCH_FAULT_SHARE", "0.01 0.1 0.3 0.5").split()]
STEPS, COMMITS = 40, 5
"""Steps at least while storage fails; `python -m tests.soak faults` tries every fault at every share for longer."""


def enough(training, kept, has_failed):
    """Some faults strike what is read alone, of which there is little before the restore."""
    return training.step >= STEPS and (has_failed or len(kept.committed) >= COMMITS)


@pytest.mark.parametrize("name", BURSTS)
def test_s3_that_fails(training, microburst, rng, name):
    share = rng.choice(SHARES)
    with microburst.failing(name, share):
        training.through(microburst.endpoint)
        kept = training.start()
        training.go_on(kept, lambda: enough(training, kept, microburst.fired() >= 10 * share))
    training.assert_newest_won(kept)
    kept.stop()
    with microburst.failing(name, share):
        after = training.start(attempt=2)
    assert training.step == training.saved_step
    assert training.catalog.quarantined() == {}
    assert after.superseded == []


def test_a_proxy_that_leaves_lengths_out(training, microburst):
    """Microburst, for one: the answers to HEAD have none. What has landed is recognised all the same."""
    training.through(microburst.endpoint)
    storage = training.machine.storage
    for path, data in {"a/some": b"123", "a/none": b""}.items():
        assert storage.create(path, data)
        assert storage.size(path) == len(data)
        assert not storage.create(path, data), "it was there already"
        with pytest.raises(AlreadyExists):
            storage.create(path, b"other")
    with pytest.raises(NotFound):
        storage.size("a/nothing")


@pytest.mark.parametrize("kind", FaultyProxy.KINDS)
def test_s3_that_lies(training, faulty, rng, kind):
    share = max(0.1, rng.choice(SHARES))
    training.through(faulty.endpoint)
    kept = training.start()
    training.go_on(kept, lambda: len(kept.committed) >= 2)
    faulty.fault(kind, share)
    training.go_on(kept, lambda: faulty.fired >= 3)
    faulty.fault("", 0)
    training.assert_newest_won(kept)
    kept.stop()
    faulty.fault(kind, share)
    training.start(attempt=2)
    faulty.fault("", 0)
    assert training.step == training.saved_step


def test_s3_that_is_away_and_comes_back(training, seaweed_of_its_own):
    """With the waits of real life: nothing is shortened but the outage, which ends when training has gone on."""
    server = seaweed_of_its_own
    training.through(server.endpoint)
    kept = training.start()
    training.go_on(kept, lambda: len(kept.committed) >= 2)
    server.stop()
    before = training.step
    training.go_on(kept, lambda: training.step >= before + STEPS and kept.keeper.status()["storage_trouble"])
    held = [path for path in kept.config.paths.snapshots.iterdir() if path.name.startswith("slot-")]
    assert len(held) == 2, "what is held while storage is away has a limit"
    server.start()
    training.assert_newest_won(kept)
    wait_for("no trouble is told any more", lambda: not kept.keeper.status()["storage_trouble"], LIMIT_S)
