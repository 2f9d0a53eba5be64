"""What was saved while the loss was no number: never restored again, in memory and in storage.

In memory it is forgotten; in storage it is marked as a damaged checkpoint is (quarantine/): kept, reported and
passed over.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from orch_workers.checkpoint.catalog import RestorePoint
from orch_workers.checkpoint.errors import Damaged
from orch_workers.numbers import Stretch, bad_losses
from orch_workers.training.slots import Slot, SlotDamagedError

if TYPE_CHECKING:
    from orch_workers.checkpoint.catalog import Catalog
    from orch_workers.checkpoint.staging import Snapshot


Point = tuple[tuple[int, int], int]
"""Generation and step."""


def is_poisoned(stretch: Stretch, step: int, metrics: Mapping[str, Any]) -> bool:
    """`metrics`: of the very step that was saved."""
    return step >= stretch.bad_step or (step > stretch.good_step and bool(bad_losses(metrics)))


def in_memory(stretch: Stretch, snapshot: Snapshot) -> bool:
    if snapshot.step <= stretch.good_step or snapshot.step >= stretch.bad_step:
        return snapshot.step >= stretch.bad_step
    try:
        slot = Slot(snapshot.path)
    except (SlotDamagedError, OSError):
        return True
    try:
        return is_poisoned(stretch, snapshot.step, slot.read()[1].get("metrics") or {})
    except SlotDamagedError:
        return True
    finally:
        slot.close()


def mark(catalog: Catalog, stretch: Stretch, coming: Sequence[Snapshot]) -> list[Point]:
    """Marks what is poisoned on the chain, and what is on its way there; returns it. May raise a StorageError:
    repeatable.
    """
    marked: list[Point] = []
    for snapshot in coming:
        catalog.quarantine(RestorePoint(snapshot.generation, snapshot.step), f"poisoned: {stretch.reason}")
        marked.append((snapshot.generation, snapshot.step))
    for point in catalog.restore_points():
        if point.step <= stretch.good_step:
            continue
        try:
            metrics = _metrics_of(catalog, point)
        except Damaged:
            continue  # found again, and dealt with, when it is to be restored
        if any(is_poisoned(stretch, point.step, each) for each in metrics):
            catalog.quarantine(point, f"poisoned: {stretch.reason}")
            marked.append((point.generation, point.step))
    return marked


def _metrics_of(catalog: Catalog, point: RestorePoint) -> list[Mapping[str, Any]]:
    """Of every rank: the loss of one may have been a number where another's was none."""
    manifest = catalog.manifest(point)
    others = range(1, manifest.world_size)
    found = [manifest.metrics]
    found += [catalog.rank_manifest(point, manifest, rank).meta.get("metrics") for rank in others]
    return [metrics or {} for metrics in found]
