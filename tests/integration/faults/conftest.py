"""Keepers whose storage is SeaweedFS behind something that fails."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from botocore.retries import standard

from orch_workers.checkpoint import open_storage, s3
from support.faults import FaultyProxy, Microburst
from support.seaweed import SeaweedFS
from support.training import Training
from support.workers import Machine

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def microburst(seaweed: SeaweedFS) -> Iterator[Microburst]:
    with tempfile.TemporaryDirectory(prefix="orch-") as folder, Microburst(seaweed, Path(folder)) as proxy:
        yield proxy


@pytest.fixture
def faulty(seaweed: SeaweedFS, rng: random.Random) -> Iterator[FaultyProxy]:
    with FaultyProxy(seaweed, rng) as proxy:
        yield proxy


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    # The client's own tries are as in life, only closer together.
    monkeypatch.setattr(standard.ExponentialBackoff, "delay_amount", lambda *_, **__: 0.01)
    monkeypatch.setattr(s3, "READ_LIMIT_S", 3)
    folder = Path(tempfile.mkdtemp(prefix="orch-"))
    made = Machine(folder, monkeypatch)
    yield made
    made.close()


@pytest.fixture
def seaweed_of_its_own(tmp_path: Path) -> Iterator[SeaweedFS]:
    """One that may be stopped."""
    with SeaweedFS(tmp_path / "s3") as server:
        yield server


@pytest.fixture
def training(machine: Machine, seaweed: SeaweedFS, request: pytest.FixtureRequest) -> Training:
    """Through no proxy yet; see `Training.through`."""
    name = request.node.name.replace("[", "-").replace("]", "").replace(" ", "-").replace(",", "")
    url = seaweed.url(f"faults/{name}")
    if "seaweed_of_its_own" in request.fixturenames:
        seaweed = request.getfixturevalue("seaweed_of_its_own")
    straight = open_storage(url, seaweed.options, seaweed.env)

    def through(endpoint: str) -> None:
        env = {**seaweed.env, "AWS_ENDPOINT_URL": endpoint}
        machine.storage = open_storage(url, {**seaweed.options, "endpoint_url": endpoint}, env)

    return Training(machine, straight, through)
