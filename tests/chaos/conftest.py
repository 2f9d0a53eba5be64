"""What several chaos tests compare with."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.nodes import Pool
from support.recovery import Victim, starts
from support.server import Server


@pytest.fixture(scope="module")
def pool(server: Server) -> Iterator[Pool]:
    started = Pool(server)
    try:
        yield started
    finally:
        started.close()


@pytest.fixture(scope="session")
def undisturbed(server: Server) -> bytes:
    """What the job ends with when nobody kills anything."""
    victim = Victim(server)
    detail = victim.finish()
    assert len(starts(detail)) == 1
    victim.assert_nothing_left()
    return victim.final_bytes()
