"""The side of orch that lives inside the training process: Python 3.8+, standard library only at import."""

from __future__ import annotations

from typing import Any


def training(**objects: Any) -> Any:
    from orch_workers.training.session import open_run

    return open_run(objects)
