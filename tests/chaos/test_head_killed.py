"""Ray's head is killed with everything on its machine; agents on another node train on, and are adopted."""

from __future__ import annotations

import random

import pytest

from support import losing_head
from support.leftovers import assert_nothing_left

pytestmark = pytest.mark.chaos


def test_agents_elsewhere_are_adopted(undisturbed: bytes, rng: random.Random) -> None:
    with losing_head.elsewhere() as server:
        told = losing_head.kill_head(server, rng, undisturbed)
        server.stop()
        assert_nothing_left(server.home, [told["job"]])
