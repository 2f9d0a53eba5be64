"""PyTorch Lightning under orch: `orch.lightning.Checkpoint()`, `orch.lightning.CheckpointIO()`. Imports Lightning."""

from __future__ import annotations

import importlib
import sys
from typing import Any

from orch_workers.training.lightning_fit import callback_class, io_class

NAMES = ("lightning.pytorch", "pytorch_lightning")
"""The two packages have classes of their own, which do not go together: the one that the script has imported counts."""


def _lightning() -> tuple[Any, Any]:
    for name in sorted(NAMES, key=lambda name: name not in sys.modules):
        try:
            return importlib.import_module(name), importlib.import_module(f"{name}.plugins.io")
        except ImportError:
            continue
    raise ImportError("orch.lightning needs Lightning in this environment: `pip install lightning`")


_package, _io = _lightning()
Checkpoint = callback_class(_package.Callback)
CheckpointIO = io_class(_io.TorchCheckpointIO)

__all__ = ["Checkpoint", "CheckpointIO"]
