"""An agent that has lost its cluster for longer than its lease saves, ends its training process and itself."""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.leftovers import assert_nothing_left
from support.losing_cluster import cluster_frozen
from support.server import Server

pytestmark = pytest.mark.chaos


@pytest.fixture
def short_lease() -> Iterator[Server]:
    home = Path(tempfile.mkdtemp(prefix="orch-"))
    (home / "config.yaml").write_text("lease: 3s\n")
    server = Server(home)
    try:
        server.start()
        yield server
        jobs = [job["id"] for job in server.client().jobs()]
    finally:
        server.put_away()
    assert_nothing_left(home, jobs)
    shutil.rmtree(home)


def test_the_cluster_is_silent_for_longer_than_the_lease(short_lease: Server, rng: random.Random) -> None:
    cluster_frozen(short_lease, rng)
