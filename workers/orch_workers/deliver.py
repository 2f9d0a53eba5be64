"""Brings a job's outputs into storage, for `orch fetch`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from orch.model.generation import Generation
from orch_workers import outputs
from orch_workers.checkpoint.catalog import Catalog
from orch_workers.checkpoint.errors import StorageError

OUTPUT_BYTES_MAX = 4 << 30
"""One output file; larger ones belong into a storage of their own."""


def deliver(catalog: Catalog, workdir: Path, patterns: Sequence[str], generation: Generation) -> list[str]:
    """Copies what the patterns name to `outputs/<generation>/…`; returns what could not be, each with its reason."""
    problems: list[str] = []
    if not patterns or not workdir.is_dir():
        return problems
    for name in outputs.collect(workdir, list(patterns)):
        path = workdir / name
        try:
            size_bytes = path.stat().st_size
            if size_bytes > OUTPUT_BYTES_MAX:
                problems.append(f"{name}: {size_bytes} bytes, at most {OUTPUT_BYTES_MAX} are brought back")
                continue
            catalog.storage.create(catalog.path("outputs", str(generation), name), path.read_bytes())
        except (OSError, StorageError) as error:
            problems.append(f"{name}: {error}")
    return problems
