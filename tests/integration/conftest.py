"""What several integration tests share beside the server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.jobs import Following, wait_output, write_job
from support.server import Server


@pytest.fixture(scope="session")
def stubborn(server: Server, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A job whose whole tree ignores SIGTERM, cancelled with grace. Asked for early in the session and looked at
    late: the grace period passes while other tests run.
    """
    folder = tmp_path_factory.mktemp("stubborn")
    run = "trap '' TERM; (while :; do sleep 1001; done) & echo ready; while :; do sleep 1000; done"
    job = server.submit(write_job(folder, run))
    wait_output(server, job, "ready")
    server.cli("cancel", job, "--no-wait")
    return job


@pytest.fixture
def own_jobs(server: Server, stubborn: str) -> Iterator[None]:
    """Ends what a test that failed left running: it would stand in the way of every later one."""
    yield
    for job in server.client().jobs():
        if job["ended"] is None and job["id"] != stubborn:
            server.cli("cancel", "--now", job["id"])


@pytest.fixture(autouse=True)
def _nobody_goes_on_following() -> Iterator[None]:
    yield
    while Following.running:
        Following.running.pop().kill()
