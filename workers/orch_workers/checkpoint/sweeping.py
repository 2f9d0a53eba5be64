"""Removes from storage what no commit and no restore will ever need."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orch_workers.checkpoint import blobs
from orch_workers.checkpoint.chain import tuple_of
from orch_workers.checkpoint.errors import Damaged, StorageError

if TYPE_CHECKING:
    from collections.abc import Collection

    from orch_workers.checkpoint.catalog import Catalog, RestorePoint
    from orch_workers.checkpoint.chain import Generation

QUARANTINED_KEPT_MAX = 8
"""So many checkpoints in quarantine stay for a person to look at, the newest; older ones go once they lie off the
chain.
"""

SWEEP_COMMITS = 50
"""A generation sweeps after its first commit, and again after so many: what an older one left by then, too."""


class Sweeper:
    """Sweeps from time to time, for a writer that commits. Not for several threads."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._swept_for: Generation | None = None
        self._commits = 0

    def after(
        self, generation: Generation, protect: Collection[tuple[Generation, int]], by: Generation
    ) -> str:
        """After a commit of `generation` by the writer of `by`. What a person should know, or ""; a storage that
        fails here has the checkpoint all the same, and is swept after the next.
        """
        self._commits += 1
        if self._swept_for == generation and self._commits < SWEEP_COMMITS:
            return ""
        try:
            self._catalog.sweep(protect, by=by)
        except (StorageError, Damaged) as error:
            return f"leftovers are not removed for now: {error}"
        self._swept_for, self._commits = generation, 0
        return ""


def sweep(
    catalog: Catalog,
    temporary_age_s: float,
    protect: Collection[tuple[Generation, int]],
    by: Generation | None,
) -> int:
    """See `Catalog.sweep`.

    Lists may be behind what is there. So nothing goes for not being listed: whether a place has a manifest is looked
    at once more before its parts are removed, and a list of generations without the sweeper's own ends it.
    """
    newest = catalog.newest_generation()
    if newest is None or (by is not None and newest != tuple_of(by)):
        return 0
    points = catalog.committed()
    removed = _off_chain(catalog, newest, points)
    spared = {(tuple_of(generation), step) for generation, step in protect} | {p[:2] for p in points}
    own_newest = max((p.step for p in points if p.generation == newest), default=0)

    def is_over(place: tuple[Generation, int]) -> bool:
        return place not in spared and (place[0] < newest or (place[0] == newest and place[1] < own_newest))

    for folder in ("quarantine", "pins"):
        for path, place in catalog.places(folder):
            # A mark whose checkpoint is gone: its remover was killed before it came to the mark.
            if is_over(place) and not catalog.storage.exists(catalog.manifest_path(*place)):
                catalog.storage.delete(path)
                removed += 1
    vacant: dict[tuple[Generation, int], bool] = {}
    for folder in ("ranks", "shards"):
        for path, place in catalog.places(folder):
            if not is_over(place):
                continue
            if place not in vacant:
                vacant[place] = _vacate(catalog, place)
            if vacant[place]:
                catalog.storage.delete(path)
                removed += 1
    for place in (place for place, is_vacant in vacant.items() if is_vacant):
        # Against a writer that was asleep: it may have committed between the look and the removal of its parts.
        catalog.storage.delete(catalog.manifest_path(*place))
    return removed + blobs.sweep(catalog) + catalog.storage.sweep_temporaries(temporary_age_s)


def _vacate(catalog: Catalog, place: tuple[Generation, int]) -> bool:
    """Whether this place has no manifest, and none that a power loss would bring back."""
    manifest = catalog.manifest_path(*place)
    if catalog.storage.exists(manifest):
        return False
    catalog.storage.delete(manifest)
    return True


def _off_chain(catalog: Catalog, newest: Generation, points: list[RestorePoint]) -> int:
    """Removes checkpoints that can never be restored, once the newest generation has one of its own."""
    if not any(point.generation == newest for point in points):
        return 0
    chain = catalog.chain_of(newest)
    root = chain.ancestors[-1].generation if chain.ancestors else newest
    off = [p for p in points if root <= p.generation < newest and not chain.admits(p.generation, p.step)]
    spared = {place for _, place in catalog.places("pins")}
    marked = {place for _, place in catalog.places("quarantine")}
    spared.update([p[:2] for p in points if p[:2] in marked][:QUARANTINED_KEPT_MAX])
    gone = [point for point in off if point[:2] not in spared]
    for point in gone:
        catalog.remove(point)
    return len(gone)
