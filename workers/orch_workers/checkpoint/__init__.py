"""Checkpoints: from a snapshot in shared memory to storage and back. See docs/checkpoint-format.md."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from orch_workers.checkpoint.catalog import Catalog, RestorePoint
from orch_workers.checkpoint.chain import Chain, Fork
from orch_workers.checkpoint.errors import (
    AlreadyExists,
    CheckpointError,
    Damaged,
    NotFound,
    NothingRestorable,
    Rejected,
    SnapshotChanged,
    StorageError,
    StorageRefused,
    StorageUnavailable,
    Superseded,
    WrittenByNewer,
)
from orch_workers.checkpoint.reader import Restored, find_and_restore, restore
from orch_workers.checkpoint.retaining import Retained
from orch_workers.checkpoint.staging import Given, Snapshot, Staging
from orch_workers.checkpoint.storage import Entry, Storage, open_storage
from orch_workers.checkpoint.writer import Committed, commit, commit_step, write_rank

if TYPE_CHECKING:
    from orch_workers.checkpoint.checkpointer import Checkpointer, Loaded

__all__ = [
    "AlreadyExists",
    "Catalog",
    "Chain",
    "CheckpointError",
    "Checkpointer",
    "Committed",
    "Damaged",
    "Entry",
    "Fork",
    "Given",
    "Loaded",
    "NotFound",
    "NothingRestorable",
    "Rejected",
    "RestorePoint",
    "Restored",
    "Retained",
    "Snapshot",
    "SnapshotChanged",
    "Staging",
    "Storage",
    "StorageError",
    "StorageRefused",
    "StorageUnavailable",
    "Superseded",
    "WrittenByNewer",
    "commit",
    "commit_step",
    "find_and_restore",
    "open_storage",
    "restore",
    "write_rank",
]


def __getattr__(name: str) -> Any:
    """For scripts alone: with it comes all that knows tensors, and an agent that replaces a dead one has no time."""
    if name not in {"Checkpointer", "Loaded"}:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from orch_workers.checkpoint import checkpointer

    return getattr(checkpointer, name)
