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
def store(home: Home) -> Iterator[Store]:
    store = Store.open(home, {})
    yield store
    store.close()
