"""The way of a slot into storage and back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from orch_workers.checkpoint import reader, writer
from orch_workers.checkpoint.catalog import Catalog
from orch_workers.config import WorkerConfig
from orch_workers.prepared import Filled
from orch_workers.training.slots import Slot


def bring_slot(
    catalog: Catalog, config: WorkerConfig, make: Callable[[int], Path], newer_than: int, *, known: bool
) -> reader.Restored | None:
    """The newest state in storage that is newer than that step, in a slot that `make` makes. `known`: something was
    committed before.
    """
    return reader.find_and_restore(
        catalog,
        config.rank,
        make,
        newer_than=newer_than,
        committed_before=known,
        world_size=config.world_size,
    )


def commit_slot(catalog: Catalog, config: WorkerConfig, filled: Filled) -> writer.Committed:
    """Writes a snapshot to storage; see writer.commit."""
    slot = Slot(filled.snapshot.path)
    try:
        return writer.commit(
            catalog,
            slot,
            rank=config.rank,
            world_size=config.world_size,
            code_digest=config.code_digest,
            blocked_s=filled.info.get("blocked_s"),
        )
    finally:
        slot.close()
