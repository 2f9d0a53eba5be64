"""Ray's head is killed with everything on its machine; agents on another node train on, and are adopted."""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.leftovers import assert_nothing_left
from support.second_raylet import SecondRaylet, head_options, kill_head
from support.server import Server

pytestmark = pytest.mark.chaos


@pytest.fixture
def own_server() -> Iterator[Server]:
    home = Path(tempfile.mkdtemp(prefix="orch-"))
    (home / "config.yaml").write_text("ray_state: disk\n")
    server = Server(home)
    try:
        server.start(*head_options())
        yield server
    finally:
        server.put_away()
    shutil.rmtree(home)


def test_agents_elsewhere_are_adopted(own_server: Server, undisturbed: bytes, rng: random.Random) -> None:
    with SecondRaylet(own_server):
        told = kill_head(own_server, rng, undisturbed)
        own_server.stop()
    assert_nothing_left(own_server.home, [told["job"]])
