"""Pieces of tensors, wherever they lie in a checkpoint, brought to where they are wanted.

A rank reads what it has written itself shard by shard (filling.py). The rest is gathered here: what another rank has
written for it, and, on another number of ranks or divided in another way, the parts of pieces that its own pieces are
made of. Only the digest chunks (8 MiB) are read that hold something of what is wanted, and each is checked.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from orch_workers.checkpoint.content import Part, Ref, stream
from orch_workers.checkpoint.errors import Damaged
from orch_workers.checkpoint.format import DIGEST_CHUNK_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterable

    from orch_workers.checkpoint.catalog import Catalog


class Box(NamedTuple):
    """A block of a tensor: where it begins, and how far it goes."""

    offsets: tuple[int, ...]
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    def overlap(self, other: Box) -> Box | None:
        """None where there is none; of two scalars it is the scalar."""
        first = tuple(map(max, self.offsets, other.offsets))
        last = [min(at + length, there + far) for at, length, there, far in zip(*self, *other, strict=True)]
        shape = tuple(end - begin for begin, end in zip(first, last, strict=True))
        return Box(first, shape) if all(length > 0 for length in shape) else None

    def within(self, other: Box) -> tuple[slice, ...]:
        """This block as a part of `other`, which holds it."""
        starts = [at - begin for at, begin in zip(self.offsets, other.offsets, strict=True)]
        return tuple(slice(at, at + length) for at, length in zip(starts, self.shape, strict=True))


def box_of(ref: Ref) -> Box:
    return Box(ref.record.offsets, ref.record.shape)


class Wanted(NamedTuple):
    """A block of the tensor `name`, `size_bytes` from `at` on in memory, and the pieces that it is made of."""

    name: str
    box: Box
    size_bytes: int
    at: int
    sources: tuple[Ref, ...]


def sources_of(name: str, box: Box, pieces: Iterable[Ref]) -> tuple[Ref, ...]:
    """Those of `pieces` that make up the block, each place once. Damaged when they do not make all of it."""
    found: dict[Box, Ref] = {}
    for ref in pieces:
        if box.overlap(box_of(ref)) is not None:
            found.setdefault(box_of(ref), ref)
    if box in found:
        return (found[box],)
    covered = sum(shared.elements for place in found if (shared := box.overlap(place)) is not None)
    if covered != box.elements:
        raise Damaged(
            f"tensor {name!r}: {covered} of the {box.elements} elements from {list(box.offsets)} on are in the "
            f"checkpoint"
        )
    return tuple(found.values())


def gather(catalog: Catalog, wanted: Sequence[Wanted], view: memoryview) -> None:
    """Reads everything that is wanted into `view`. Damaged when bytes do not match their digests."""
    into = {ref: one for one in wanted for ref in one.sources}
    spans = {ref: _span(ref, one.box) for ref, one in into.items()}
    taken: dict[Ref, bytearray] = {}

    def is_needed(ref: Ref, number: int) -> bool:
        first, last = spans[ref]
        return number * DIGEST_CHUNK_BYTES < last and (number + 1) * DIGEST_CHUNK_BYTES > first

    for part in stream(catalog, into, only=is_needed):
        one = into[part.ref]
        if box_of(part.ref) == one.box:
            start = one.at + part.start
            view[start : start + len(part.data)] = part.data
        elif _take(part, spans[part.ref], taken):
            _place(part.ref, taken.pop(part.ref), one, view)


def _span(ref: Ref, box: Box) -> tuple[int, int]:
    """The bytes of a piece, from its own beginning, in whose rows the overlap lies."""
    shared = box.overlap(box_of(ref))
    if shared is None or not ref.record.shape:
        return 0, ref.record.size_bytes
    row_bytes = ref.record.size_bytes // ref.record.shape[0]
    rows = shared.within(box_of(ref))[0]
    return rows.start * row_bytes, rows.stop * row_bytes


def _take(part: Part, span: tuple[int, int], taken: dict[Ref, bytearray]) -> bool:
    """Keeps what is of the span; True when that is all of it. The parts of one piece come one after the other."""
    first, last = span
    known = taken.setdefault(part.ref, bytearray())
    begin, end = max(first, part.start), min(last, part.start + len(part.data))
    assert begin == first + len(known), "parts come in order"
    known += part.data[begin - part.start : end - part.start]
    return len(known) == last - first


def _place(ref: Ref, rows: bytearray, one: Wanted, view: memoryview) -> None:
    there = box_of(ref)
    shared = one.box.overlap(there)
    assert shared is not None
    width = _width(ref)
    of_rows = Box(
        (shared.offsets[0], *there.offsets[1:]),
        (shared.shape[0], *there.shape[1:]),
    )
    source: np.ndarray[Any, Any] = np.frombuffer(rows, np.uint8).reshape(*of_rows.shape, width)
    target = np.frombuffer(view[one.at : one.at + one.size_bytes], np.uint8).reshape(*one.box.shape, width)
    target[shared.within(one.box)] = source[shared.within(of_rows)]


def _width(ref: Ref) -> int:
    """Bytes of an element."""
    elements = math.prod(ref.record.shape)
    if ref.record.size_bytes % max(1, elements):
        raise Damaged(f"tensor {ref.record.name!r} of {ref.record.dtype} cannot be taken apart")
    return ref.record.size_bytes // max(1, elements)
