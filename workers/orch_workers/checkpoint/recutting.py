"""A checkpoint onto another number of ranks, or divided over them in another way.

Rank r takes what is its own (random states, values, what differs between ranks) from the rank r modulo the number of
those that saved. Of a tensor that is divided over the ranks it takes the block that it is to hold now, put together
from the pieces that lie in it; a tensor that is to be whole here is put together whole.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from orch_workers.checkpoint.content import Content, Ref, shard_problems
from orch_workers.checkpoint.errors import Damaged
from orch_workers.checkpoint.gathering import Box, Wanted, box_of, sources_of
from orch_workers.checkpoint.trees import children, entry_of
from orch_workers.training.slots import Slot, aligned

if TYPE_CHECKING:
    from orch_workers.checkpoint.catalog import Catalog, RestorePoint


class Place(NamedTuple):
    """What a rank holds of a tensor: that of the entry `entry`, or below it (an optimizer's state of a parameter)."""

    entry: str
    global_shape: tuple[int, ...]
    box: Box


class Recut(NamedTuple):
    """What goes into a rank's slot."""

    wanted: tuple[Wanted, ...]
    entries: tuple[dict[str, Any], ...]
    meta: dict[str, Any]
    data_bytes: int


def places_of(told: object) -> tuple[Place, ...]:
    """Those that a training process has told of. ValueError for what is none."""
    try:
        return tuple(
            Place(
                str(one["entry"]),
                tuple(map(int, one["global_shape"])),
                Box(tuple(map(int, one["offsets"])), tuple(map(int, one["shape"]))),
            )
            for one in told or ()  # type: ignore[attr-defined]
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"places that do not read: {error}") from error


class Places:
    """By the name of an entry."""

    def __init__(self, places: Iterable[Place]) -> None:
        self._by_name = {place.entry: place for place in places}

    def of(self, name: str, global_shape: Sequence[int]) -> Box | None:
        """Where that entry lies in the whole, on this rank; None where nothing was told of it."""
        found = self._by_name.get(name)
        while found is None and "." in name:
            name = name.rpartition(".")[0]
            found = self._by_name.get(name)
        return found.box if found is not None and found.global_shape == tuple(global_shape) else None


def agrees(entries: Iterable[Mapping[str, Any]], places: Places) -> bool:
    """Whether a slot's entries are divided as they are to be."""
    for entry in entries:
        shape = entry["shape"]
        whole = entry.get("global_shape", shape)
        box = places.of(entry["name"], whole)
        if box is not None and box != Box(tuple(entry.get("offsets", [0] * len(shape))), tuple(shape)):
            return False
    return True


def is_divided_so(path: str, told: object) -> bool:
    """Whether the slot at `path` holds what a training process has told that it holds."""
    if not told:
        return True
    slot = Slot(path)
    try:
        return agrees(slot.read()[1]["entries"], Places(places_of(told)))
    finally:
        slot.close()


def recut(
    catalog: Catalog, point: RestorePoint, rank: int, world_size: int, places: Sequence[Place] = ()
) -> Recut:
    """What rank `rank` of `world_size` is to read. Damaged when the checkpoint is not what was committed."""
    content = Content.open(catalog, point)
    for problem in shard_problems(content).values():
        raise Damaged(problem)
    source = rank % content.manifest.world_size
    known, by_name = Places(places), dict[str, list[Ref]]()
    for ref in content.refs():
        by_name.setdefault(ref.record.name, []).append(ref)
    wanted, entries, cut = list[Wanted](), list[dict[str, Any]](), set[str]()
    end = 0
    for name, refs in by_name.items():
        own = next((ref for ref in refs if ref.rank == source), None)
        if own is None:
            continue
        box, pieces = _block(own, refs, known)
        at = aligned(end)
        one = Wanted(name, box, _size_bytes(own, refs, box), at, sources_of(name, box, pieces))
        wanted.append(one)
        entries.append(_entry(own, one))
        end = at + one.size_bytes
        if known.of(name, own.record.global_shape) is not None:
            cut.add(name)
    meta = dict(content.ranks[source].meta)
    _mark_divided(meta.get("tree"), cut)
    saved_by = content.manifest.world_size
    meta["moved"] = {"ranks": saved_by, "rank": source, "onto": world_size, "as": rank}
    return Recut(tuple(wanted), tuple(entries), meta, end)


def _block(own: Ref, refs: Sequence[Ref], places: Places) -> tuple[Box, Sequence[Ref]]:
    """What is wanted of a tensor, and the pieces it may be made of."""
    record = own.record
    box = places.of(record.name, record.global_shape)
    if own.is_whole:  # each rank has one of its own, or the same
        return box or box_of(own), [own]
    alike = [
        ref
        for ref in refs
        if (ref.record.dtype, ref.record.global_shape) == (record.dtype, record.global_shape)
    ]
    return box or Box((0,) * len(record.global_shape), record.global_shape), alike


def _size_bytes(own: Ref, refs: Sequence[Ref], box: Box) -> int:
    """From the width of an element, which an empty piece does not tell."""
    if box == box_of(own):
        return own.record.size_bytes
    for ref in refs:
        elements = math.prod(ref.record.shape)
        if elements:
            return box.elements * ref.record.size_bytes // elements
    return 0


def _entry(own: Ref, one: Wanted) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "name": one.name,
        "dtype": own.record.dtype,
        "shape": list(one.box.shape),
        "offset": one.at,
        "size_bytes": one.size_bytes,
    }
    if one.box.shape != own.record.global_shape:
        entry |= {"global_shape": list(own.record.global_shape), "offsets": list(one.box.offsets)}
    return entry


def _mark_divided(node: Any, names: set[str]) -> None:
    """Tensors that become pieces here are said to be, so that an optimizer takes them as such."""
    if not names:
        return
    waiting = [node]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict) and entry_of(one) in names:
            one["sharded"] = True
        else:
            waiting += [child for _, child in children(one)]
