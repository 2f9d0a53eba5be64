"""What the agent measures of its saves, and what it makes of it."""

from __future__ import annotations

import pytest

from orch_policies.interval import Every
from orch_workers.pacing import MEASURED, Pacing

AUTO = Every(seconds=None, auto=True)


class Clock:
    now_s = 0.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def clock():
    return Clock()


def made(clock, every=AUTO, **seen):
    return Pacing(every, seen, clock)


def test_what_the_job_file_says_stands_as_it_is(clock):
    pacing = made(clock, Every(steps=5, seconds=60))
    pacing.saved(30.0)
    assert pacing.every == Every(steps=5, seconds=60)
    assert pacing.every.rules()["steps"] == 5
    assert pacing.admits("steps", 0.0)
    assert pacing.status()["sentence"] == "every 5 steps or 60 s"


def test_auto_follows_what_saves_cost(clock):
    pacing = made(clock)
    pacing.started()
    assert pacing.every.seconds == 60
    pacing.saved(2.0)
    cold_s = pacing.every.seconds
    assert cold_s == pytest.approx(588, rel=0.01), "the first save counts while it is the only one"
    for _ in range(MEASURED):
        pacing.saved(0.2)
        pacing.drained(3.0)
    assert pacing.every.seconds == pytest.approx(cold_s / 10**0.5, rel=0.01)
    pacing.saved(50.0)
    assert pacing.status()["blocked_s"] == 0.2, "one that met a busy machine moves nothing"
    for nonsense in (None, "x", float("nan"), -1):
        pacing.saved(nonsense)
    assert pacing.status()["blocked_s"] == 0.2


def test_auto_follows_the_failures_of_this_attempt(clock):
    pacing = made(clock, blocked_s=0.2)
    pacing.started()
    calm_s = pacing.every.seconds
    for _ in range(8):
        clock.now_s += 60
        pacing.started()
    assert pacing.every.seconds < calm_s / 2.5
    assert (pacing.status()["failures"], pacing.status()["running_s"]) == (8, 480.0)


def test_what_the_controller_has_seen_counts_from_the_start(clock):
    seen = {
        "job": {"failures": 3, "running_s": 3600.0},
        "others": {"failures": 99, "running_s": 76 * 3600.0},
        "blocked_s": 0.5,
        "durable_s": 40.0,
    }
    pacing = made(clock, **seen)
    pacing.started()
    assert pacing.status() == {
        "sentence": "every 48 s (auto: a save blocks 0.5 s, lasts 40 s, a failure every 30 min; "
        "no faster than a save drains)",
        "auto": True,
        "interval_s": 48.0,
        "apart_s": None,
        "blocked_s": 0.5,
        "durable_s": 40.0,
        "failures": 3,
        "running_s": 3600.0,
    }


def test_overhead_puts_off_what_comes_too_soon(clock):
    pacing = made(clock, Every(steps=1, seconds=None, overhead_max=0.1))
    assert pacing.admits("steps", 0.0), "nothing is measured yet"
    pacing.saved(1.0)
    assert not pacing.admits("steps", 8.9)
    assert pacing.admits("steps", 9.1)
    assert pacing.admits("last", 0.0)
    assert pacing.status()["apart_s"] == pytest.approx(9.0)
