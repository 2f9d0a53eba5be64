"""One round of: an agent is stopped, its successor works, the older one wakes up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from orch_workers.checkpoint import Catalog, find_and_restore, open_storage
from orch_workers.checkpoint.reader import restore
from support import snapshots
from support.agents import LIMIT_S, state_of
from support.server import wait_for

if TYPE_CHECKING:
    import random
    from pathlib import Path

    from support.agents import Agents, Place

SAVES = 400
"""The older one would go on for so long; it never comes to that."""
OLD, NEW = "000001.000001", "000002.000001"


def run_round(agents: Agents, place: Place, job: str, rng: random.Random, folder: Path) -> dict[str, Any]:
    """Asserts that the newer generation's chain has won, and that the older one has ended because of it."""
    keep, saves = rng.choice([1, 2, 5]), rng.randrange(1, 6)
    older = agents.start(place, job, 1, saves=SAVES, keep=keep)
    older.wait_told("committed", rng.randrange(1, 4))
    _for_a_moment(rng, 0.02)
    older.stop()
    newer = agents.start(place, job, 2, saves=saves, keep=keep)
    moment = rng.choice(["before it has begun", "after it has begun", "while it saves", "after its last"])
    try:
        if moment == "before it has begun":
            _for_a_moment(rng, 0.05)
        elif moment == "after it has begun":
            newer.wait_told("began")
        elif moment == "while it saves":
            newer.wait_told("committed")
        else:
            newer.wait_told("ended")
        older.wake()
        newer.wait_ended()
        assert not newer.told("fault"), newer.told("fault")
        older.wait_ended()
    finally:
        older.kill()
        newer.kill()
    told = {"older": older.told("superseded"), "newer": newer.told("superseded")}
    assert not older.told("fault") + newer.told("fault")
    assert told["older"], "the older one never learned it"
    assert not told["newer"], told["newer"]
    fork = newer.told("began")[0]
    _assert_chain(place, job, folder, fork, fork + saves)
    off = [step for generation, step in older.told("committed") if generation == OLD and step > fork]
    return {"moment": moment, "older_committed_past_the_fork": len(off)}


def _for_a_moment(rng: random.Random, limit_s: float) -> None:
    import time

    until_s = time.monotonic() + rng.random() * limit_s
    wait_for("the random moment", lambda: time.monotonic() >= until_s, LIMIT_S)


def _assert_chain(place: Place, job: str, folder: Path, fork: int, last: int) -> None:
    catalog = Catalog(open_storage(place.url, place.options, place.env), job)
    found = find_and_restore(catalog, 0, folder / "restored")
    assert found is not None
    assert found.rejected == (), found.rejected
    assert found.point[:2] == ((2, 1), last), f"{found.point} instead of {NEW} step {last}"
    for point in catalog.restore_points():
        assert point.generation == (2, 1) or point.step <= fork, f"{point} lies past the fork at {fork}"
        restore(catalog, point, 0, folder / "restored")
        expected = snapshots.arrays_of(state_of(point.generation[0], point.step))
        assert snapshots.arrays_in(folder / "restored") == expected, f"{point} is not what was saved"
