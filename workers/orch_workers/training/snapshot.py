"""A snapshot: the whole training state as a typed tree and a list of entries, written to and read from a
slot.
"""

from __future__ import annotations

import json
import platform
from typing import Any, NamedTuple, Sequence

from .arrays import ArrayCodec, numpy_module
from .pytorch import TorchAdapter, torch_module
from .slots import HEADER_BYTES, Slot, aligned
from .tree import Codec, Decoder, Encoder, Entry

META_SLACK_BYTES = 64 << 10
"""Asked for beyond the description's present length, so that a slot need not be remade when it grows a
little.
"""


class Snapshot(NamedTuple):
    """A state that is ready to be copied: nothing of it has been copied yet."""

    entries: list[tuple[Entry, int]]
    data_bytes: int
    meta: dict[str, Any]
    size_bytes: int
    """Capacity that a slot needs, its header not counted."""


class Adapters:
    """The frameworks that the script has imported by now; asked anew at each use, since imports may come
    late.
    """

    def __init__(self) -> None:
        self._torch: Any = None

    def active(self) -> list[Any]:
        if self._torch is None:
            torch = torch_module()
            if torch is not None and hasattr(torch, "optim"):
                self._torch = TorchAdapter(torch)
        return [] if self._torch is None else [self._torch]

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
    placed: list[tuple[Entry, int]] = []
    offset = 0
    for entry in encoder.entries:
        offset = aligned(offset)
        placed.append((entry, offset))
        offset += entry.leaf.size_bytes
    described = [
        {
            "name": entry.name,
            "dtype": entry.leaf.dtype,
            "shape": list(entry.leaf.shape),
            "offset": at,
            "size_bytes": entry.leaf.size_bytes,
        }
        for entry, at in placed
    ]
    whole = {"tree": tree, "entries": described, **meta}
    encoded_bytes = len(json.dumps(whole, separators=(",", ":"), allow_nan=False))
    size_bytes = aligned(HEADER_BYTES + offset) - HEADER_BYTES + encoded_bytes + META_SLACK_BYTES
    return Snapshot(placed, offset, whole, size_bytes)


def write(snapshot: Snapshot, slot: Slot, generation: tuple[int, int], step: int) -> None:
    """One pass of copies into a slot that this process may write."""
    slot.begin(generation, step)
    data = slot.data()
    for entry, at in snapshot.entries:
        entry.leaf.copy_to(data[at : at + entry.leaf.size_bytes])
    data.release()
    slot.finish(generation, step, snapshot.data_bytes, snapshot.meta)


class Stored:
    """A READY slot, opened for reading."""

    def __init__(self, path: str, codecs: Sequence[Codec]) -> None:
        self._slot = Slot(path)
        self.header, self.meta = self._slot.read()
        self.step: int = self.meta["step"]
        data = self._slot.data()
        entries = {entry["name"]: entry for entry in self.meta["entries"]}

        def fetch(name: str) -> tuple[memoryview, str, tuple[int, ...]]:
            entry = entries[name]
            at, size_bytes = entry["offset"], entry["size_bytes"]
            return data[at : at + size_bytes], entry["dtype"], tuple(entry["shape"])

        self._data = data
        self._decoder = Decoder(fetch, codecs)

    def part(self, *path: str) -> Any:
        """The value at `path` of the tree; None when it is not there. Fresh memory, shared with nothing."""
        node = self.meta["tree"]
        for key in path:
            if not isinstance(node, dict) or key not in node:
                return None
            node = node[key]
        value = self._decoder.decode(node)
        self._decoder.forget()
        return value

    def close(self) -> None:
        self._data.release()
        self._slot.close()
