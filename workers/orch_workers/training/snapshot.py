"""A snapshot: the whole training state as a typed tree and a list of entries, written to and read from a
slot.
"""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING, Any, Callable, NamedTuple, Sequence

from .arrays import ArrayCodec, numpy_module
from .copying import THREADED_BYTES_MIN, Fills, copy_pairs
from .pytorch import TorchAdapter
from .slots import HEADER_BYTES, NO_FIXED_PART, FixedPart, Slot, aligned, encode
from .tensors import torch_module
from .tf_graph import tensorflow_module
from .tree import Codec, Decoder, Encoder, Entry, Leaf

if TYPE_CHECKING:
    from .devices import DeviceCopies
    from .watching import Watch

Placed = Any
"""list[tuple[Entry, int]]: each entry with its offset in the data region."""


class Rest(NamedTuple):
    """What is not fixed by a plan: entries to copy, and the part of the description that is new each time."""

    placed: Placed
    description: bytes


class Snapshot(NamedTuple):
    """A state that is ready to be copied: nothing of it has been copied yet."""

    rest: Rest
    data_bytes: int
    fixed: FixedPart
    copy_fixed: Callable[[memoryview, Any], None] | None
    size_bytes: int
    """Capacity that a slot needs, its header not counted; the next one may need some bytes more."""

    @staticmethod
    def of(
        placed: Placed,
        description: dict[str, Any],
        data_bytes: int,
        fixed: FixedPart = NO_FIXED_PART,
        copy_fixed: Callable[[memoryview, Any], None] | None = None,
    ) -> Snapshot:
        rest = Rest(placed, encode(description))
        described = len(fixed.encoded) + len(rest.description)
        size_bytes = aligned(HEADER_BYTES + data_bytes) - HEADER_BYTES + described
        return Snapshot(rest, data_bytes, fixed, copy_fixed, size_bytes)


class Adapters:
    """The frameworks that the script has imported by now; asked anew at each use, since imports may come
    late.
    """

    def __init__(self) -> None:
        self._torch: Any = None
        self._tensorflow: Any = None

    def active(self) -> list[Any]:
        if self._torch is None:
            torch = torch_module()
            if torch is not None and hasattr(torch, "optim"):
                self._torch = TorchAdapter(torch)
        if self._tensorflow is None:
            tensorflow = tensorflow_module()
            if tensorflow is not None:
                from .tf_adapter import TensorFlowAdapter

                self._tensorflow = TensorFlowAdapter(tensorflow)
        return [adapter for adapter in (self._torch, self._tensorflow) if adapter is not None]

    def watches(self, handlers: Sequence[Any]) -> list[Watch]:
        """Guards for those arguments that a plan can fix."""
        return [watch for adapter in self.active() for watch in adapter.watches(handlers)]

    def codecs(self) -> list[Codec]:
        found: list[Codec] = [adapter.codec for adapter in self.active()]
        numpy = numpy_module()
        if numpy is not None:
            found.append(ArrayCodec(numpy))
        return found

    def frameworks(self) -> dict[str, str]:
        found = {"python": platform.python_version()}
        found.update(adapter.framework for adapter in self.active())
        numpy = numpy_module()
        if numpy is not None:
            found["numpy"] = str(numpy.__version__)
        return found


def plan(parts: dict[str, Any], codecs: Sequence[Codec], meta: dict[str, Any]) -> Snapshot:
    """Lays out `parts` (path prefix → value). Raises UnsupportedStateError for what cannot be kept."""
    encoder = Encoder(codecs)
    tree = {name: encoder.encode(value, name) for name, value in parts.items()}
    placed, end = place(encoder.entries, 0)
    return Snapshot.of(placed, {"tree": tree, "entries": describe(placed), **meta}, end)


def place(entries: Sequence[Entry], start: int) -> tuple[Placed, int]:
    """The entries with their offsets, from `start` on, and where they end."""
    placed = []
    end = start
    for entry in entries:
        offset = aligned(end)
        placed.append((entry, offset))
        end = offset + entry.leaf.size_bytes
    return placed, end


def describe(placed: Placed) -> list[dict[str, Any]]:
    return [
        {
            "name": entry.name,
            "dtype": entry.leaf.dtype,
            "shape": list(entry.leaf.shape),
            "offset": at,
            "size_bytes": entry.leaf.size_bytes,
            **_whole(entry.leaf),
        }
        for entry, at in placed
    ]


def _whole(leaf: Leaf) -> dict[str, Any]:
    return {} if leaf.whole is None else {"global_shape": list(leaf.whole[0]), "offsets": list(leaf.whole[1])}


def write(
    snapshot: Snapshot,
    slot: Slot,
    generation: tuple[int, int],
    step: int,
    devices: DeviceCopies | None = None,
) -> None:
    """One pass of copies into a slot that this process may write."""
    slot.begin(generation, step)
    data = slot.data()
    if snapshot.copy_fixed is not None:
        snapshot.copy_fixed(data, devices)
    _copy_rest(snapshot.rest.placed, data)
    data.release()
    slot.finish(generation, step, snapshot.data_bytes, snapshot.rest.description, snapshot.fixed)


def _copy_rest(placed: Placed, data: memoryview) -> None:
    large = []
    for entry, at in placed:
        leaf = entry.leaf
        where = data[at : at + leaf.size_bytes]
        if leaf.plain is not None and leaf.size_bytes >= THREADED_BYTES_MIN:
            large.append((numpy_module().frombuffer(where, "u1"), leaf.plain()))
        elif leaf.plain is not None:
            where[:] = memoryview(leaf.plain())
        else:
            leaf.copy_to(where)
    copy_pairs(large)


class Stored:
    """A READY slot, opened for reading."""

    def __init__(self, path: str, codecs: Sequence[Codec]) -> None:
        self._slot = Slot(path, private=True)
        self.header, self.meta = self._slot.read()
        self.step: int = self.meta["step"]
        data = self._slot.data()
        entries = {entry["name"]: entry for entry in self.meta["entries"]}

        def fetch(name: str) -> tuple[memoryview, str, tuple[int, ...]]:
            entry = entries[name]
            at, size_bytes = entry["offset"], entry["size_bytes"]
            return data[at : at + size_bytes], entry["dtype"], tuple(entry["shape"])

        self._data = data
        self._fills = Fills()
        self._owning = Decoder(fetch, codecs, fill=self._fills)
        self._borrowing = Decoder(fetch, codecs, borrow=True)

    def part(self, *path: str) -> Any:
        """The value at `path` of the tree; None when it is not there. Fresh memory, shared with nothing."""
        value = self._decode(self._owning, path)
        self._fills.run()
        return value

    def borrowed(self, *path: str) -> Any:
        """The same with arrays that view the slot, in C order: for who copies what it needs before `close`."""
        return self._decode(self._borrowing, path)

    def _decode(self, decoder: Decoder, path: Sequence[str]) -> Any:
        node = self.meta["tree"]
        for key in path:
            if not isinstance(node, dict) or key not in node:
                return None
            node = node[key]
        value = decoder.decode(node)
        decoder.forget()
        return value

    def close(self) -> None:
        self._data.release()
        self._slot.close()
