"""orch: training jobs that survive. Importing this package is light: no ray, no fsspec, no pydantic."""

from __future__ import annotations

import pkgutil

# Inside a job the first `orch` on the path is the bundle with only the training side; an installed
# orch further down the path stays importable (orch.model, orch.control).
__path__ = pkgutil.extend_path(__path__, __name__)

__version__ = "0.1.0"

from orch_workers.training import training

__all__ = ["__version__", "training"]
