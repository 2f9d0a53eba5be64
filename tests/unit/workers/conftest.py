from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support.workers import Machine

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    """Not tmp_path: a socket's path may have 107 bytes."""
    folder = Path(tempfile.mkdtemp(prefix="orch-"))
    made = Machine(folder, monkeypatch)
    yield made
    made.close()
