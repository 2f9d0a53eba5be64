"""Small documents on the machine's own disk that say what is so, for whoever comes after this agent."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def write_down(path: Path, document: dict[str, Any]) -> None:
    """Durable before it returns, and whole whenever it can be seen."""
    beside = path.with_suffix(".new")
    with beside.open("w") as file:
        json.dump(document, file)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def read_down(path: Path) -> dict[str, Any] | None:
    """None when nothing was written down there, or it does not read."""
    try:
        document: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return document
