"""Tensors as the model has them: what several ranks hold pieces of, put together again."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from orch_workers.checkpoint.content import Content, Ref, stream
from orch_workers.checkpoint.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class Whole:
    """One tensor of rank 0, or one that is divided over the ranks."""

    pieces: tuple[Ref, ...]

    @property
    def dtype(self) -> str:
        return self.pieces[0].record.dtype

    @property
    def shape(self) -> Sequence[int]:
        return self.pieces[0].record.global_shape

    @property
    def is_divided(self) -> bool:
        return not self.pieces[0].is_whole

    @property
    def size_bytes(self) -> int:
        return sum(piece.record.size_bytes for piece in self.pieces)

    @property
    def element_bits(self) -> int:
        """0 for an empty tensor."""
        return self.size_bytes * 8 // max(1, math.prod(self.shape))

    def read(self, content: Content) -> memoryview:
        """All bytes, in C order, checked against their digests."""
        size_of = {piece: memoryview(bytearray(piece.record.size_bytes)) for piece in self.pieces}
        for part in stream(content.catalog, self.pieces):
            size_of[part.ref][part.start : part.start + len(part.data)] = part.data
        if not self.is_divided:
            return size_of[self.pieces[0]]
        width = self.element_bits // 8
        whole = np.empty((*self.shape, width), np.uint8)
        for piece, data in size_of.items():
            place = tuple(
                slice(offset, offset + length)
                for offset, length in zip(piece.record.offsets, piece.record.shape, strict=True)
            )
            whole[place] = np.frombuffer(data, np.uint8).reshape(*piece.record.shape, width)
        return whole.reshape(-1).data


def whole_tensors(content: Content, names: Collection[str]) -> dict[str, Whole]:
    """By entry name. CheckpointError when pieces of a divided tensor are missing or overlap in number."""
    by_name: dict[str, list[Ref]] = {}
    for ref in content.refs():
        if ref.record.name in names:
            by_name.setdefault(ref.record.name, []).append(ref)
    found = {}
    for name in names:
        refs = by_name.get(name)
        if refs is None or refs[0].rank != 0:
            raise CheckpointError(f"the typed tree names a tensor {name!r} that the checkpoint does not have")
        # Whole on rank 0: each rank has one of its own (or the same); rank 0 speaks for the job.
        whole = Whole((refs[0],) if refs[0].is_whole else _distinct(refs))
        elements = sum(math.prod(piece.record.shape) for piece in whole.pieces)
        if elements != math.prod(whole.shape):
            raise CheckpointError(
                f"tensor {name!r} has {math.prod(whole.shape)} elements, and its pieces have {elements}: they cannot "
                f"be put together"
            )
        found[name] = whole
    return found


def _distinct(refs: list[Ref]) -> tuple[Ref, ...]:
    """One piece for each place: ranks may hold copies of the same one."""
    return tuple({ref.record.offsets: ref for ref in reversed(refs)}.values())[::-1]
