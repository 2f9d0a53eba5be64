"""An agent that has lost its cluster for longer than its lease saves, ends its training process and itself."""

from __future__ import annotations

import random

import pytest

from support.losing_cluster import lease_over

pytestmark = pytest.mark.chaos


def test_the_cluster_is_silent_for_longer_than_the_lease(rng: random.Random) -> None:
    lease_over(rng)
