"""Brings a job's outputs into storage, for `orch fetch`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from orch.model.generation import Generation
from orch_workers.checkpoint.catalog import Catalog
from orch_workers.checkpoint.errors import AlreadyExists, StorageError, StorageRefused
from orch_workers.shipping import outputs

OUTPUT_BYTES_MAX = 4 << 30
"""One output file; larger ones belong into a storage of their own."""


class Delivery:
    """What `outputs` names, on its way to `outputs/<generation>/…`. Repeatable: what is there is not sent again."""

    def __init__(
        self,
        catalog: Catalog,
        workdir: Path,
        patterns: Sequence[str],
        generation: Generation,
        below: str = "",
    ) -> None:
        """OutputsError when the patterns name too much. `below`: a folder of their own for these outputs."""
        self._below = below
        self._catalog, self._workdir, self._generation = catalog, workdir, generation
        self._missing = outputs.collect(workdir, list(patterns)) if patterns and workdir.is_dir() else []
        self.problems: list[str] = []

    def attempt(self, _limit_s: float) -> bool:
        """Sends what is missing, one try each; True when nothing is left to try. `problems` says what is not there."""
        self.problems, again = [], []
        for name in self._missing:
            try:
                self._send(name)
            except (StorageRefused, AlreadyExists, OSError, ValueError) as error:
                self.problems.append(f"{name}: {error}")
            except StorageError as error:
                self.problems.append(f"{name}: {error}")
                again.append(name)
        self._missing = again
        return not again

    def _send(self, name: str) -> None:
        path = self._workdir / name
        size_bytes = path.stat().st_size
        if size_bytes > OUTPUT_BYTES_MAX:
            raise ValueError(f"{size_bytes} bytes, at most {OUTPUT_BYTES_MAX} are brought back")
        self._catalog.storage.create(
            self._catalog.path("outputs", *filter(None, (str(self._generation), self._below, name))),
            path.read_bytes(),
        )
