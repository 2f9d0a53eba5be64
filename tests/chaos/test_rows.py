"""Rows of docs/failures.md that no other test has for real, and one of the others; `python -m tests.soak rows`: all."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from support.rows import ROWS, Rows
from support.server import Server

pytestmark = pytest.mark.chaos

HERE_ALONE = ("import_error_later", "storage_away")


@pytest.mark.parametrize("row", [*HERE_ALONE, ""], ids=lambda row: row or "any")
def test_a_row(row: str, server: Server, rng: random.Random, tmp_path: Path) -> None:
    row = row or rng.choice([name for name in ROWS if name not in HERE_ALONE])
    print(row)
    ROWS[row](Rows(server, rng, tmp_path))
