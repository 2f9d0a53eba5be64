"""Nodes that go away, with and without notice, and one that comes back as if nothing had been."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from support.holding_a_gpu import gpu_still_held
from support.losing_nodes import drained, frozen, killed, terminated
from support.nodes import Pool
from support.recovery import Victim
from support.server import Server

pytestmark = pytest.mark.chaos


@pytest.fixture(scope="module")
def undisturbed(server: Server) -> bytes:
    victim = Victim(server)
    victim.finish()
    return victim.final_bytes()


def test_killed_with_everything_on_it(
    server: Server, pool: Pool, undisturbed: bytes, rng: random.Random
) -> None:
    killed(server, pool, rng, undisturbed)


def test_left_in_time(server: Server, pool: Pool, undisturbed: bytes, rng: random.Random) -> None:
    """One of the two each time; `python -m tests.soak nodes` has both, many times over."""
    rng.choice([drained, terminated])(server, pool, rng, undisturbed)


def test_frozen_given_up_and_woken(
    server: Server, pool: Pool, undisturbed: bytes, rng: random.Random
) -> None:
    frozen(server, pool, rng, undisturbed)


def test_a_gpu_is_free_before_the_next_generation_has_it(
    server: Server, pool: Pool, rng: random.Random, tmp_path: Path
) -> None:
    gpu_still_held(server, pool, rng, tmp_path)
