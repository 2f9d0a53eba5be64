"""What the whole test session shares: one seed, one orch server, one S3 server."""

from __future__ import annotations

import json
import os
import random
import secrets
import signal
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support.leftovers import assert_nothing_left
from support.postgres import Postgres
from support.seaweed import SeaweedFS
from support.server import Server, own_server

if TYPE_CHECKING:
    from collections.abc import Iterator

SEED = int(os.environ.setdefault("ORCH_TEST_SEED", str(secrets.randbelow(2**31))))
"""Another one in every session; ORCH_TEST_SEED repeats one. It is set for the processes that pytest-xdist starts: one
session, one seed.
"""

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # `just test &` in a script: every process below would ignore Ctrl-C too, which is what some tests are about.
    signal.signal(signal.SIGINT, signal.default_int_handler)
# As Ctrl-C: whoever ends the tests ends what they started too.
signal.signal(signal.SIGTERM, signal.default_int_handler)


def pytest_report_header() -> str:
    return f"ORCH_TEST_SEED={SEED}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if terminalreporter.stats.get("failed") or terminalreporter.stats.get("error"):
        terminalreporter.write_line(f"repeat with ORCH_TEST_SEED={SEED}")


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """The session's seed mixed with the test's name: stays the same when other tests come and go."""
    return random.Random(f"{SEED} {request.node.nodeid}").getrandbits(31)


@pytest.fixture
def rng(seed: int) -> random.Random:
    return random.Random(seed)


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """A real server in a home of its own, started once. Jobs of all tests share it: use their ids alone."""
    # Not tmp_path: the home is closed to others, and a short path keeps Ray's sockets in it.
    with own_server() as shared:
        yield shared
        jobs = json.loads(shared.cli("status", "-o", "json").stdout)["jobs"]
        shared.put_away()
        assert_nothing_left(shared.home, [job["id"] for job in jobs])


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A real PostgreSQL on loopback, started once; every test makes its own database: `postgres.database()`."""
    with tempfile.TemporaryDirectory(prefix="orch-pg-") as folder, Postgres(Path(folder)) as database:
        yield database


@pytest.fixture(scope="session")
def seaweed() -> Iterator[SeaweedFS]:
    """A real S3 server on loopback, started once; give every test its own prefix: `seaweed.url("name")`."""
    with tempfile.TemporaryDirectory(prefix="orch-s3-") as folder, SeaweedFS(Path(folder)) as s3:
        yield s3
