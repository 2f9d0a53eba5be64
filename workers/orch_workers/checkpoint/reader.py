"""From a checkpoint in storage to a READY slot file that a training process maps. No code of a file is ever
run.

Every byte of a tensor is checked against its digest on the way. What does not match is read again before it
is called damage: some clients hand on a truncated or corrupted answer without a word (FIELD.md).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from orch_workers.checkpoint.blobs import KIND
from orch_workers.checkpoint.content import refs_of, shared_refs
from orch_workers.checkpoint.errors import (
    CheckpointError,
    Damaged,
    NotFound,
    NothingRestorable,
    Rejected,
    StorageError,
    StorageUnavailable,
)
from orch_workers.checkpoint.filling import fill
from orch_workers.checkpoint.format import Manifest, PieceRecord, RankManifest, ShardRecord
from orch_workers.checkpoint.gathering import Wanted, box_of, gather
from orch_workers.checkpoint.recutting import Place, recut
from orch_workers.checkpoint.rereading import Doubt
from orch_workers.training.collection import no_collection
from orch_workers.training.slots import Slot, SlotHeader, aligned, encode, format_generation

if TYPE_CHECKING:
    from orch_workers.checkpoint.catalog import Catalog, RestorePoint
    from orch_workers.checkpoint.chain import Chain, Generation


REMOVED_MAX = 20
"""So many restore points may go while they are read, before storage is asked again later."""
Target = Path | str | Callable[[int], Path | str]
"""Where the slot file goes: a path, or what makes one of at least so many bytes (data and description)."""


T = TypeVar("T")


@dataclass(frozen=True)
class Found(Generic[T]):
    """What was read of a restore point, and what was found damaged before (and quarantined)."""

    point: RestorePoint
    what: T
    seconds_s: float
    rejected: tuple[Rejected, ...] = ()


@dataclass(frozen=True)
class Restored:
    """What was restored, and what was found damaged before (and quarantined)."""

    point: RestorePoint
    header: SlotHeader
    path: str
    size_bytes: int
    seconds_s: float
    rejected: tuple[Rejected, ...] = field(default=())


def find_and_restore(
    catalog: Catalog,
    rank: int,
    target: Target,
    *,
    newer_than: int = -1,
    committed_before: bool = False,
    world_size: int | None = None,
) -> Restored | None:
    """`find_and_read` of the state of one rank, into a slot at `target`. Also raises OSError, when there is no room
    for the slot.
    """
    found = find_and_read(
        catalog,
        lambda point: restore(catalog, point, rank, target, world_size=world_size),
        newer_than=newer_than,
        committed_before=committed_before,
    )
    if found is None:
        return None
    header, path = found.what
    return Restored(found.point, header, path, header.data_bytes, found.seconds_s, found.rejected)


def find_and_read(
    catalog: Catalog,
    read: Callable[[RestorePoint], T],
    *,
    newer_than: int = -1,
    committed_before: bool = False,
) -> Found[T] | None:
    """The newest restore point that `read` finds whole (no Damaged); quarantines what is damaged on the way.

    None when the job has nothing to restore. `newer_than`: a step that the caller has in memory; older or
    equal restore points are then not looked at (None: memory is the newest). `committed_before`: the caller
    knows that something was committed, so an empty storage is a missing one.

    Raises NothingRestorable when checkpoints exist and none can be restored (with those that were rejected, or with
    none when another list may be better), a StorageError when storage cannot be reached (nothing is concluded from
    that).
    """
    rejected: list[Rejected] = []
    removed: list[Rejected] = []
    points = points_of(catalog)
    while points:
        point = points.pop(0)
        if point.step <= newer_than:
            return None
        began = time.monotonic()
        try:
            what = read(point)
        except Damaged as error:
            if not catalog.storage.exists(catalog.manifest_path(*point[:2])):
                # An agent of the generation before, which does not know yet that it is superseded, has removed it by
                # the rules of `keep`, and so has committed a newer one.
                removed.append(Rejected(point.generation, point.step, "was removed while it was read"))
                if len(removed) >= REMOVED_MAX:
                    raise StorageUnavailable(
                        f"{catalog.job_id}: {REMOVED_MAX} checkpoints were removed, each while it was read"
                    ) from error
                known = {one[:2] for one in rejected + removed}
                points = [one for one in points_of(catalog) if one[:2] not in known]
                continue
            rejected.append(Rejected(point.generation, point.step, str(error)))
            with contextlib.suppress(StorageError):  # the mark is for people; restoring goes on without it
                catalog.quarantine(point, str(error), needs_version=error.needs_version)
            continue
        return Found(point, what, time.monotonic() - began, tuple(rejected))
    if newer_than >= 0:
        return None
    assert_nothing_was_there(catalog, rejected, committed_before)
    if removed:
        # A list that is behind names what is gone, and not what has taken its place.
        raise NothingRestorable("\n".join(["storage lists only what is gone:", *map(str, removed)]))
    return None


def points_of(catalog: Catalog) -> list[RestorePoint]:
    """Restore points, newest first. NothingRestorable when there are checkpoints and the chain does not read."""
    try:
        return catalog.restore_points()
    except Damaged as error:
        found = [Rejected(*point[:2], "not known to lie on the chain") for point in catalog.committed()]
        raise NothingRestorable(f"the chain of {catalog.job_id} does not read: {error}", found) from error


def assert_nothing_was_there(catalog: Catalog, rejected: list[Rejected], committed_before: bool) -> None:
    known = {r[:2] for r in rejected}
    chain = catalog.chain()
    for point, reason in catalog.quarantined().items():
        if point[:2] not in known and (chain is None or chain.admits(point.generation, point.step)):
            rejected.append(Rejected(point.generation, point.step, f"in quarantine: {reason}"))
    if chain is None:
        rejected += [
            Rejected(*point[:2], "no generation's record leads to it") for point in catalog.committed()
        ]
    else:
        rejected += _past_the_fork(catalog, chain, {r[:2] for r in rejected})
    where = f"{catalog.storage.url}/{catalog.job_id}"
    if rejected:
        raise NothingRestorable(
            f"none of the {len(rejected)} checkpoints in {where} can be restored; nothing was started from "
            f"scratch. Bring one back, or submit the job anew to start over:",
            rejected,
        )
    if committed_before:
        raise NothingRestorable(
            f"{where} has no checkpoint, although this job has committed some: is it the right storage, "
            f"and is it "
            f"mounted? Nothing was started from scratch"
        )


def _past_the_fork(catalog: Catalog, chain: Chain, known: set[tuple[Generation, int]]) -> list[Rejected]:
    """What ancestors saved after the step that the newest generation went on from; what they had saved before it is
    gone, or the job would go on from there.
    """
    ancestors = {fork.generation: fork.until_step for fork in chain.ancestors}
    newest = format_generation(chain.generation)
    return [
        Rejected(
            *point[:2],
            f"off the chain: generation {newest} has saved nothing and went on from step"
            f" {ancestors[point.generation]}, which was removed",
        )
        for point in catalog.committed()
        if point[:2] not in known and point.step > ancestors.get(point.generation, point.step)
    ]


def restore(
    catalog: Catalog,
    point: RestorePoint,
    rank: int,
    target: Target,
    *,
    world_size: int | None = None,
    places: Sequence[Place] | None = None,
) -> tuple[SlotHeader, str]:
    """Reads one rank of one checkpoint into a new READY slot at `target`; header and path of it.

    `world_size`: of the ranks that go on. Where others have saved it, or `places` say what this rank is to hold of
    divided tensors, it is put together anew (recutting.py). Damaged: with what differs; nothing is left at the target.
    """
    manifest = catalog.manifest(point)
    if manifest.kind == KIND:
        raise CheckpointError(
            f"{point} holds files that a script wrote itself (`checkpoint.files`), and no state that could be loaded"
        )
    if places is not None or world_size not in (None, manifest.world_size):
        onto = manifest.world_size if world_size is None else world_size
        made = recut(catalog, point, rank, onto, places or ())
        with no_collection():
            described = encode({**made.meta, "entries": list(made.entries)})
        return _into_slot(
            point, target, made.data_bytes, described, lambda view: gather(catalog, made.wanted, view)
        )
    part = catalog.rank_manifest(point, manifest, rank)
    shared, data_bytes = _shared(catalog, point, manifest, part)
    _check_shards(catalog, point, part)
    with no_collection():
        description = _described(part, shared)

    def read(view: memoryview) -> None:
        fill(catalog, part, view[: part.data_bytes])
        gather(catalog, shared, view)

    return _into_slot(point, target, data_bytes, description, read)


def _into_slot(
    point: RestorePoint,
    target: Target,
    data_bytes: int,
    description: bytes,
    read: Callable[[memoryview], None],
) -> tuple[SlotHeader, str]:
    capacity = aligned(data_bytes) + len(description)
    path = str(target(capacity) if callable(target) else target)
    if not callable(target):
        Path(path).unlink(missing_ok=True)  # never truncated in place: somebody may still have it mapped
        Slot.create(path, capacity)
    try:
        slot = Slot(path, writable=True, populate=False)
        try:
            slot.begin(point.generation, point.step)
            view = slot.data()[:data_bytes]
            try:
                read(view)
            finally:
                view.release()
            slot.finish(point.generation, point.step, data_bytes, description)
            return slot.header(), path
        finally:
            slot.close()
    except BaseException:
        Path(path).unlink(missing_ok=True)
        raise


def _shared(
    catalog: Catalog, point: RestorePoint, manifest: Manifest, part: RankManifest
) -> tuple[list[Wanted], int]:
    """What other ranks have written for this one, placed behind what it has written itself; and where that ends."""
    found, end = list[Wanted](), part.data_bytes
    if not part.shared:
        return found, end
    parts = [
        catalog.rank_manifest(point, manifest, rank) for rank in sorted({one.rank for one in part.shared})
    ]
    for other in parts:
        _check_shards(catalog, point, other)
    known = {other.rank: refs_of(catalog, other) for other in parts}
    for ref in shared_refs(part, known):
        at = aligned(end)
        end = at + ref.record.size_bytes
        found.append(Wanted(ref.record.name, box_of(ref), ref.record.size_bytes, at, (ref,)))
    return found, end


def _check_shards(catalog: Catalog, point: RestorePoint, part: RankManifest) -> None:
    """Sizes before anything is allocated: a manifest that lies asks for no memory."""
    folder = catalog.shards_folder(point.generation, point.step)
    stored = {entry.path: entry.size_bytes for entry in catalog.storage.list(folder)}
    for shard in part.shards:
        path = catalog.path(shard.path)
        if not path.startswith(f"{folder}/{part.rank}-"):
            raise Damaged(f"rank manifest: {shard.path!r} is no shard of this checkpoint")
        if stored.get(path) != shard.size_bytes:
            _check_size(catalog, path, shard)  # a list may be behind what is there


def _check_size(catalog: Catalog, path: str, shard: ShardRecord) -> None:
    doubt = Doubt(path)
    while True:
        try:
            size_bytes = catalog.storage.size(path)
        except NotFound as error:
            if doubt.is_settled("missing"):
                raise Damaged(f"{shard.path} is missing") from error
            continue
        if size_bytes == shard.size_bytes:
            return
        if doubt.is_settled(str(size_bytes)):
            raise Damaged(f"{shard.path} has {size_bytes} bytes instead of {shard.size_bytes}")


def _described(part: RankManifest, shared: Sequence[Wanted]) -> bytes:
    """What a training process reads of a slot, beside the data."""
    bases = _bases(part)
    entries = [_entry(tensor, bases[tensor.shard] + tensor.start) for tensor in part.tensors]
    entries += [_entry(one.sources[0].record, one.at) for one in shared]
    try:
        return encode({**part.meta, "entries": entries})
    except ValueError as error:
        raise Damaged(f"rank manifest: {error}") from error


def _entry(piece: PieceRecord, offset: int) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "name": piece.name,
        "dtype": piece.dtype,
        "shape": list(piece.shape),
        "offset": offset,
        "size_bytes": piece.size_bytes,
    }
    if piece.global_shape != piece.shape:
        entry |= {"global_shape": list(piece.global_shape), "offsets": list(piece.offsets)}
    return entry


def _bases(part: RankManifest) -> list[int]:
    """Where each shard's data region begins in the slot's: they follow one another without a gap."""
    bases, position = [], 0
    for shard in part.shards:
        bases.append(position)
        position += shard.size_bytes - shard.data_offset
    return bases


__all__ = [
    "Found",
    "Restored",
    "assert_nothing_was_there",
    "find_and_read",
    "find_and_restore",
    "points_of",
    "restore",
]
