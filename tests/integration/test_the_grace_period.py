"""The end of a job whose whole tree ignores SIGTERM; late in the session, because it takes its time."""

from __future__ import annotations

import pytest

from support.leftovers import of_jobs
from support.recovery import placement_groups
from support.server import Server

pytestmark = pytest.mark.integration


def test_after_it_everything_is_killed(server: Server, stubborn: str) -> None:
    found = server.wait(stubborn, check=3)
    assert found["state"] == "CANCELLED"
    assert not of_jobs(server.home, [stubborn])
    assert not placement_groups(server, stubborn)
