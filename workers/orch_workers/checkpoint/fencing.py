"""What a writer has to know of the writers after it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orch_workers.checkpoint.chain import tuple_of
from orch_workers.checkpoint.errors import StorageError, Superseded
from orch_workers.training.slots import format_generation

if TYPE_CHECKING:
    from orch_workers.checkpoint.catalog import Catalog
    from orch_workers.checkpoint.chain import Generation


def confirm(catalog: Catalog, generation: Generation, step: int, world_size: int, *, by: Generation) -> None:
    """After a commit: Superseded when a newer generation than `by`, the committer's own, has begun meanwhile.

    A writer may sleep for hours between its last look and its last write (SIGSTOP), and learns it here. What it
    has committed lies off the newer chain, or on it and is as good as any; unless its parts were removed while it
    slept: then it is a checkpoint that cannot be restored, and its manifest goes again. The remover deletes the
    manifest before the parts and once more after them, so one of the two sees the other.
    """
    try:
        newest = catalog.newest_generation()
    except StorageError:
        return  # it is committed; the next commit will hear it
    if newest is None or newest <= tuple_of(by):
        return
    parts = [catalog.rank_path(generation, step, rank) for rank in range(world_size)]
    if not all(catalog.storage.exists(path) for path in parts):
        catalog.storage.delete(catalog.manifest_path(generation, step))
    raise Superseded(
        f"generation {format_generation(tuple_of(by))} of {catalog.job_id} was superseded by "
        f"{format_generation(newest)} while step {step} was being committed"
    )
