"""orch: training jobs that survive. Importing this package is light: no ray, no fsspec, no pydantic."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

# Inside a job the first `orch` on the path is the bundle with only the training side; an installed
# orch further down the path stays importable (orch.model, orch.control).
__path__ = pkgutil.extend_path(__path__, __name__)

__version__ = "0.1.0"

from orch_workers.training import training

__all__ = ["__version__", "training"]

_LATER = ("keras", "tensorflow")
"""Integrations, imported when they are first used: they import what they integrate."""


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
