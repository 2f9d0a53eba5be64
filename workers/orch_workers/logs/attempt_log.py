"""The log of one attempt: the command writes it, the agent adds a word, and it is copied to storage as it grows."""

from __future__ import annotations

import contextlib
from pathlib import Path

from orch.model.generation import Generation
from orch_workers.keeper import Keeper
from orch_workers.logs.redaction import Redactor
from orch_workers.logs.worker_log import LogShipper


class AttemptLog:
    """Used by the worker's loop alone. `redactor`: what it is shipped without; set before `begin`."""

    def __init__(self, path: Path, rank: int) -> None:
        self.path, self._rank = path, rank
        self.redactor = Redactor()
        self._shipper: LogShipper | None = None

    def begin(self, keeper: Keeper, generation: Generation) -> None:
        """What is written from here on belongs to this generation."""
        prefix = keeper.catalog.path("logs", str(generation), str(self._rank))
        if self._shipper is None:
            self._shipper = LogShipper(self.path, keeper.create_object, prefix, redactor=self.redactor)
        else:
            self._shipper.begin(prefix)

    def tell(self, text: str) -> None:
        """A word of the agent's own; a disk that is full is no reason to do less."""
        with contextlib.suppress(OSError), self.path.open("a") as file:
            file.write(text)

    def close(self) -> None:
        if self._shipper is not None:
            self._shipper.close()
