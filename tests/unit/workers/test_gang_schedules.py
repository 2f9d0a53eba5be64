"""The gang's protocol under bad schedules: one generation at a time, one state for all, one end."""

from __future__ import annotations

import random

from orch_workers.gang import member as members
from support.gang_world import PlayedTime, World

SEEDS = 40


def test_whatever_happens_the_gang_stays_one(monkeypatch, seed):
    clock = PlayedTime()
    monkeypatch.setattr(members, "time", clock)
    rng = random.Random(seed)
    for _ in range(SEEDS):
        one = rng.getrandbits(32)
        try:
            World(one, clock).run()
        except AssertionError as error:
            raise AssertionError(f"schedule {one}: {error}") from error
