from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from orch.control.home import Home
from orch.control.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home").ensure()


@pytest.fixture
def engine() -> str:
    return "sqlite"


@pytest.fixture
def env(engine: str, request: pytest.FixtureRequest) -> dict[str, str]:
    """What has `Store.open(home, env)` use that engine."""
    return {} if engine == "sqlite" else {"ORCH_STORE": request.getfixturevalue("postgres").database()}


@pytest.fixture
def store(home: Home, env: dict[str, str]) -> Iterator[Store]:
    store = Store.open(home, env)
    yield store
    store.close()
