"""The controller SIGKILLs itself in the middle of its work; training does not notice, and nothing is done twice.

A few places a session, by its seed; `python -m tests.soak transitions` does all of them.
"""

from __future__ import annotations

import random

import pytest

from orch.model.commands import COMMANDS
from orch.model.events import EVENTS
from support.recovery import starts
from support.server import Server
from support.transitions import LIVES, NO_LIFE, live, pick

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
    name = rng.choice([name for name, life in LIVES.items() if name != "calm" and not life.takes_a_minute])
    places = pick(rng, name, OTHER_PLACES)
    print(f"{name}: killed at {places}")
    live(server, name, places, undisturbed)


def test_every_event_and_command_has_its_life() -> None:
    reached = {place.partition(":")[0] for life in LIVES.values() for place in life.places}
    assert reached | NO_LIFE.keys() == EVENTS.keys() | COMMANDS.keys()
    assert not reached & NO_LIFE.keys()
