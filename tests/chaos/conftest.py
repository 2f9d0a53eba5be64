"""What several chaos tests compare with."""

from __future__ import annotations

import pytest

from support.recovery import Victim, starts
from support.server import Server


@pytest.fixture(scope="session")
def undisturbed(server: Server) -> bytes:
    """What the job ends with when nobody kills anything."""
    victim = Victim(server)
    detail = victim.finish()
    assert len(starts(detail)) == 1
    victim.assert_nothing_left()
    return victim.final_bytes()
