"""The controller SIGKILLs itself in the middle of its work; training does not notice, and nothing is done twice.

A few places a session, by its seed; `python -m tests.soak transitions` does all of them.
"""

from __future__ import annotations

import random

import pytest

from support.recovery import starts
from support.server import Server
from support.transitions import LIVES, live, pick

pytestmark = pytest.mark.chaos

CALM_PLACES = 4
OTHER_PLACES = 2


def test_at_places_of_an_undisturbed_life(server: Server, undisturbed: bytes, rng: random.Random) -> None:
    places = pick(rng, "calm", CALM_PLACES)
    print(f"killed at {places}")
    told = live(server, "calm", places, undisturbed)
    [start] = starts(told["found"])
    assert start["restored_step"] is None, "training went on by itself"


def test_at_places_of_a_disturbed_life(server: Server, undisturbed: bytes, rng: random.Random) -> None:
    name = rng.choice([name for name in LIVES if name != "calm"])
    places = pick(rng, name, OTHER_PLACES)
    print(f"{name}: killed at {places}")
    live(server, name, places, undisturbed)
