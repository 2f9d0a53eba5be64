"""An agent that slept through its own end: whatever it still writes, its successor's chain wins, and it ends."""

from __future__ import annotations

import pytest

from support.agents import Agents, Place
from support.fencing import run_round

pytestmark = pytest.mark.chaos

ROUNDS = 4
"""Here, with another seed in every run; `python -m tests.soak fencing` runs 1,000."""


@pytest.fixture(scope="module")
def agents(tmp_path_factory):
    with Agents(tmp_path_factory.mktemp("agents")) as started:
        yield started


@pytest.mark.parametrize("number", range(ROUNDS))
@pytest.mark.parametrize("kind", ["local", "s3"])
def test_the_newer_generation_wins_whoever_wrote_first(agents, tmp_path, rng, request, kind, number):
    if kind == "local":
        place = Place(str(tmp_path / "storage"), {}, {})
    else:
        seaweed = request.getfixturevalue("seaweed")
        place = Place(seaweed.url("fencing"), seaweed.options, seaweed.env)
    run_round(agents, place, f"{kind}-{number}", rng, tmp_path)
