"""Two checkpoints beside each other: which tensors differ and by how much, and what else differs.

Tensors whose digests agree are equal and are not read. The others are read in parts, chunk by chunk, so that
two checkpoints of any size are compared in a few hundred megabytes of memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from orch_workers.checkpoint.content import Content, Ref, stream
from orch_workers.checkpoint.format import DIGEST_CHUNK_BYTES
from orch_workers.checkpoint.trees import Difference, differences

if TYPE_CHECKING:
    from orch_workers.checkpoint.content import Moved

GROUP_BYTES = 128 << 20
"""Read together of each side, so that many small tensors cost few requests."""
TREE_DIFFERENCES_MAX = 1000
"""More are counted, not listed."""

How = Literal["changed", "added", "removed", "reshaped", "retyped"]

_NUMPY = {
    "BOOL": np.uint8, "U8": np.uint8, "I8": np.int8, "U16": np.uint16, "I16": np.int16, "U32": np.uint32,
    "I32": np.int32, "U64": np.uint64, "I64": np.int64, "F16": np.float16, "F32": np.float32, "F64": np.float64,
    "C64": np.complex64, "C128": np.complex128,
}  # fmt: skip
_ELEMENT_BYTES = {"BF16": 2, "C32": 4, **{name: np.dtype(kind).itemsize for name, kind in _NUMPY.items()}}
"""Other element types have one byte, or are compared byte by byte."""


class Change(NamedTuple):
    """One tensor. `before` and `after`: dtype and shape as text. The numbers stand where both sides have the
    same dtype and shape: elements whose bits differ, the largest absolute difference, and the norm of the
    difference over the norm of `before` (None where the element type is no number we know; nan and inf as they come).
    """

    name: str
    how: How
    before: str | None
    after: str | None
    size_bytes: int
    elements: int
    differing: int | None = None
    max_abs: float | None = None
    relative_norm: float | None = None


@dataclass
class Comparison:
    """Empty lists: equal bit for bit."""

    changes: list[Change] = field(default_factory=list)
    tree: list[Difference] = field(default_factory=list)
    more_in_tree: int = 0
    tensors_equal: int = 0
    size_bytes: int = 0
    """Of all tensors of `before`."""

    @property
    def is_equal(self) -> bool:
        return not self.changes and not self.tree


def compare(before: Content, after: Content, *, moved: Moved | None = None) -> Comparison:
    """Damaged when bytes that must be read do not match their digests."""
    found = Comparison()
    ours = {ref.label: ref for ref in before.refs()}
    theirs = {ref.label: ref for ref in after.refs()}
    found.size_bytes = sum(ref.record.size_bytes for ref in ours.values())
    pairs: list[tuple[Ref, Ref]] = []
    for name, ref in ours.items():
        other = theirs.get(name)
        if other is None:
            found.changes.append(_alone(ref, "removed"))
        elif (how := _shape_change(ref, other)) is not None:
            size = max(ref.record.size_bytes, other.record.size_bytes)
            found.changes.append(Change(name, how, kind_of(ref), kind_of(other), size, _count(ref)))
        elif ref.record.digests == other.record.digests:
            found.tensors_equal += 1
        else:
            pairs.append((ref, other))
    found.changes += [_alone(ref, "added") for name, ref in theirs.items() if name not in ours]
    found.changes += _measured(before, after, pairs, moved)
    order = {name: number for number, name in enumerate(dict.fromkeys([*ours, *theirs]))}
    found.changes.sort(key=lambda change: order[change.name])
    for difference in _trees(before, after):
        if len(found.tree) < TREE_DIFFERENCES_MAX:
            found.tree.append(difference)
        else:
            found.more_in_tree += 1
    return found


def bytes_to_read(before: Content, after: Content) -> int:
    """How much `compare` will read, for whoever shows progress."""
    theirs = {ref.label: ref.record for ref in after.refs()}
    total = 0
    for ref in before.refs():
        other = theirs.get(ref.label)
        if other is not None and _comparable(ref.record, other) and ref.record.digests != other.digests:
            total += ref.record.size_bytes
    return total


def kind_of(ref: Ref) -> str:
    """`F32 [3, 4]`, and of what for a piece of a divided tensor."""
    record = ref.record
    text = f"{record.dtype} {list(record.shape)}"
    return text if ref.is_whole else f"{text} at {list(record.offsets)} of {list(record.global_shape)}"


def _alone(ref: Ref, how: How) -> Change:
    kind = kind_of(ref)
    before, after = (kind, None) if how == "removed" else (None, kind)
    return Change(ref.label, how, before, after, ref.record.size_bytes, _count(ref))


def _count(ref: Ref) -> int:
    return math.prod(ref.record.shape)


def _comparable(one: Any, other: Any) -> bool:
    return bool(
        one.dtype == other.dtype
        and one.shape == other.shape
        and one.global_shape == other.global_shape
        and one.offsets == other.offsets
    )


def _shape_change(ref: Ref, other: Ref) -> How | None:
    if _comparable(ref.record, other.record):
        return None
    return "retyped" if ref.record.shape == other.record.shape else "reshaped"


def _trees(before: Content, after: Content) -> Iterator[Difference]:
    for rank in range(max(len(before.ranks), len(after.ranks))):
        prefix = "" if rank == 0 else f"(rank {rank})"
        if rank >= len(before.ranks) or rank >= len(after.ranks):
            there = before if rank < len(before.ranks) else after
            text = f"a rank of {len(there.ranks)}"
            yield Difference(prefix, *((text, None) if there is before else (None, text)))
        else:
            yield from differences(before.tree(rank), after.tree(rank), prefix)


# the bytes


def _measured(
    before: Content, after: Content, pairs: list[tuple[Ref, Ref]], moved: Moved | None
) -> Iterator[Change]:
    """Reads what differs, a group of tensors at a time, first of one side and then of the other."""
    other_of = {ref.label: other for ref, other in pairs}
    sums = {ref.label: _Sums() for ref, _ in pairs}
    for group in _groups([ref for ref, _ in pairs]):
        wanted = dict(group)
        theirs = {other_of[ref.label]: (ref, stretch) for ref, stretch in group}

        def is_asked(ref: Ref, number: int, wanted: dict[Ref, range] = wanted) -> bool:
            return number in wanted[ref]

        def differs(other: Ref, number: int, theirs: dict[Ref, tuple[Ref, range]] = theirs) -> bool:
            ref, stretch = theirs[other]
            return number in stretch and ref.record.digests[number] != other.record.digests[number]

        found = {(part.ref, part.start): part.data for part in stream(after.catalog, theirs, only=differs)}
        for part in stream(before.catalog, wanted, only=is_asked):
            sums[part.ref.label].add(
                part.ref.record.dtype, part.data, found.pop((other_of[part.ref.label], part.start), None)
            )
            if moved is not None:
                moved(len(part.data))
    for ref, other in pairs:
        total = sums[ref.label]
        yield Change(
            ref.label,
            "changed",
            kind_of(ref),
            kind_of(other),
            ref.record.size_bytes,
            _count(ref),
            total.differing,
            total.max_abs if total.is_number else None,
            total.relative_norm() if total.is_number else None,
        )


def _groups(refs: Iterable[Ref]) -> Iterator[list[tuple[Ref, range]]]:
    """Tensors of about GROUP_BYTES together, each with the chunks that are wanted of it: a large one comes alone,
    in several stretches.
    """
    chunks_max = max(1, GROUP_BYTES // DIGEST_CHUNK_BYTES)
    group: list[tuple[Ref, range]] = []
    size_bytes = 0
    for ref in refs:
        count = len(ref.record.digests)
        for first in range(0, count, chunks_max):
            stretch = range(first, min(count, first + chunks_max))
            stretch_bytes = min(len(stretch) * DIGEST_CHUNK_BYTES, ref.record.size_bytes)
            if group and (size_bytes + stretch_bytes > GROUP_BYTES or group[-1][0] is ref):
                yield group
                group, size_bytes = [], 0
            group.append((ref, stretch))
            size_bytes += stretch_bytes
    if group:
        yield group


class _Sums:
    """What has been seen of one tensor so far."""

    def __init__(self) -> None:
        self.differing = 0
        self.max_abs = 0.0
        self.is_number = True
        self._squares_before = 0.0
        self._squares_difference = 0.0

    def add(self, dtype: str, before: memoryview, after: memoryview | None) -> None:
        """`after` None: the same bytes on both sides."""
        ours = values_of(dtype, before)
        if ours is None:
            self.is_number = False
        else:
            self._squares_before += _squares(ours)
        if after is None:
            return
        differs = _differs(before, after, _ELEMENT_BYTES.get(dtype, 1))
        self.differing += int(np.count_nonzero(differs))
        theirs = values_of(dtype, after)
        if ours is None or theirs is None:
            return
        with np.errstate(all="ignore"):  # inf - inf and the like are what is to be reported
            difference = np.abs(theirs - ours)
        difference[~differs] = 0.0  # inf beside the same inf is no difference, though subtracting says nan
        largest = float(np.max(difference, initial=0.0))
        self.max_abs = largest if math.isnan(largest) else max(self.max_abs, largest)
        self._squares_difference += _squares(difference)

    def relative_norm(self) -> float:
        if self._squares_difference == 0.0:
            return 0.0
        if self._squares_before == 0.0:
            return math.inf
        return math.sqrt(self._squares_difference) / math.sqrt(self._squares_before)


def _differs(before: memoryview, after: memoryview, width: int) -> np.ndarray[Any, Any]:
    """Per element, whether any bit does: nan beside the same nan is equal, 0.0 beside -0.0 is not."""
    ours, theirs = np.frombuffer(before, np.uint8), np.frombuffer(after, np.uint8)
    found: np.ndarray[Any, Any] = (ours != theirs).reshape(-1, width).any(axis=1)
    return found


def _squares(values: np.ndarray[Any, Any]) -> float:
    with np.errstate(all="ignore"):
        return float(np.sum(np.square(np.abs(values))))


def values_of(dtype: str, data: memoryview) -> np.ndarray[Any, Any] | None:
    """The elements as float64 (complex128), exact up to 2**53; None for an element type that is no number we know."""
    with np.errstate(all="ignore"):  # a signalling nan becomes a quiet one
        return _values_of(dtype, data)


def _values_of(dtype: str, data: memoryview) -> np.ndarray[Any, Any] | None:
    if dtype == "BF16":
        widened = np.frombuffer(data, np.uint16).astype(np.uint32) << 16
        return widened.view(np.float32).astype(np.float64)
    if dtype == "F8_E5M2":
        widened = np.frombuffer(data, np.uint8).astype(np.uint16) << 8
        return widened.astype(np.uint16).view(np.float16).astype(np.float64)
    if dtype == "F8_E4M3":
        return _E4M3[np.frombuffer(data, np.uint8)]
    if dtype == "C32":
        halves = np.frombuffer(data, np.float16).astype(np.float64)
        pairs: np.ndarray[Any, Any] = halves.view(np.complex128)
        return pairs
    kind = _NUMPY.get(dtype)
    if kind is None:
        return None
    found = np.frombuffer(data, kind)
    return found.astype(np.complex128 if found.dtype.kind == "c" else np.float64)


def _e4m3_values() -> np.ndarray[Any, Any]:
    """All 256 values of float8 e4m3fn: bias 7, no infinities, nan where all seven low bits are set."""
    codes = np.arange(256)
    exponent, fraction = (codes >> 3) & 15, codes & 7
    normal = (1 + fraction / 8) * 2.0 ** (exponent - 7)
    values = np.where(exponent == 0, fraction / 8 * 2.0**-6, normal)
    values = np.where(codes & 127 == 127, np.nan, values)
    return np.where(codes & 128, -values, values)


_E4M3 = _e4m3_values()
