"""Two ranks with DDP in one job, and real kills of every part of them: the final bytes stay the same.

Which rank it hits changes with the seed; `python -m tests.soak gangs` has all of it, many times over.
"""

from __future__ import annotations

import random

import pytest

from support import gang_jobs
from support.gang_jobs import STEPS, GangVictim
from support.nodes import Pool
from support.recovery import assert_chain_kept, starts
from support.server import Server

pytestmark = pytest.mark.chaos


@pytest.fixture(scope="module")
def undisturbed(server: Server) -> bytes:
    victim = GangVictim(server)
    detail = victim.finish()
    assert len(starts(detail)) == 1
    assert {event["rank"] for event in victim.events("ProcessStarted")} == {0, 1}
    assert_chain_kept(victim, STEPS)
    victim.assert_nothing_left()
    return victim.final_bytes()


@pytest.mark.parametrize("rows", [("process", "agent"), ("preempted", "node")], ids=" or ".join)
def test_it_goes_on_as_if_nothing_had_been(
    rows: tuple[str, ...], server: Server, pool: Pool, undisturbed: bytes, rng: random.Random
) -> None:
    """One of the two each time."""
    gang_jobs.ROWS[rng.choice(rows)](server, pool, undisturbed, rng.randrange(2))
