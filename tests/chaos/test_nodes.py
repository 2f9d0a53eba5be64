"""Nodes that go away, with and without notice, and one that comes back as if nothing had been."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from support.losing_nodes import drained, frozen, killed, terminated
from support.nodes import Pool
from support.recovery import Victim
from support.server import Server

pytestmark = pytest.mark.chaos


@pytest.fixture(scope="module")
def pool(server: Server) -> Iterator[Pool]:
    started = Pool(server)
    try:
        yield started
    finally:
        started.close()


@pytest.fixture(scope="module")
def undisturbed(server: Server) -> bytes:
    victim = Victim(server)
    victim.finish()
    return victim.final_bytes()


def test_killed_with_everything_on_it(
    server: Server, pool: Pool, undisturbed: bytes, rng: random.Random
) -> None:
    killed(server, pool, rng, undisturbed)


def test_drained_with_a_deadline(server: Server, pool: Pool, undisturbed: bytes, rng: random.Random) -> None:
    drained(server, pool, rng, undisturbed)


def test_told_to_end(server: Server, pool: Pool, undisturbed: bytes, rng: random.Random) -> None:
    terminated(server, pool, rng, undisturbed)


def test_frozen_given_up_and_woken(
    server: Server, pool: Pool, undisturbed: bytes, rng: random.Random
) -> None:
    frozen(server, pool, rng, undisturbed)
