"""Fixtures of the API's tests: a store-backed control plane, served for real."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from orch.api.serve import ApiServer
from orch.control.home import Home
from support.fake_control import FakeControlService
from support.live_api import TOKEN, Api


@pytest.fixture
def control(tmp_path: Path) -> Iterator[FakeControlService]:
    control = FakeControlService(Home(tmp_path / "home"))
    yield control
    control.store.close()


@pytest.fixture
def server(control: FakeControlService) -> Iterator[ApiServer]:
    server = ApiServer(control, TOKEN, hosts=["my-server"])
    server.start()
    yield server
    server.stop()


@pytest.fixture
def api(server: ApiServer) -> Iterator[Api]:
    api = Api(f"{server.url}/api/v1")
    yield api
    api.pool.clear()
