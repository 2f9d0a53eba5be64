"""The server's whole home is lost, and the jobs come back from their storage (`orch recover`)."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from support.leftovers import assert_nothing_left
from support.server import own_server
from support.store_lost import lose_the_store

pytestmark = pytest.mark.chaos


def test_jobs_go_on_from_their_storage_alone(undisturbed: bytes, rng: random.Random, tmp_path: Path) -> None:
    with own_server() as server:
        jobs = lose_the_store(server, tmp_path / "storage", rng, undisturbed)
        server.stop()
        assert_nothing_left(server.home, jobs)
