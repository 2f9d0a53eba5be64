"""How the entries of a snapshot lie in shards, kept from one checkpoint to the next.

Between two snapshots of a job the bytes change and the layout does not. Names, dtypes, shapes and places are
therefore checked and turned into JSON once, and with 20,000 small tensors a checkpoint costs little more than
their digests.
"""

from __future__ import annotations

import json
import threading
from typing import Any, NamedTuple

from orch_workers.checkpoint import format as checkpoint_format
from orch_workers.checkpoint.format import (
    Piece,
    check_entries,
    cut,
    digests_of,
    header_entries,
    pack_header,
)


class Written(NamedTuple):
    """One entry: the bytes [start, end) of the snapshot, and its record in the rank manifest up to the digests."""

    start: int
    end: int
    record: str


class Layout:
    """Everything about a snapshot's shards that follows from its entries alone.

    Raises ValueError for entries that cannot be stored as they are. `shard_bytes`: see `format.cut`.
    """

    def __init__(self, entries: list[dict[str, Any]], data_bytes: int, shard_bytes: int) -> None:
        self.entries, self.data_bytes, self.shard_bytes = entries, data_bytes, shard_bytes
        self.pieces = cut(check_entries(entries, data_bytes), data_bytes, shard_bytes)
        self._headers = [header_entries(piece) for piece in self.pieces]
        self._tensors = [_written(piece, number) for number, piece in enumerate(self.pieces)]

    def header(self, number: int, metadata: dict[str, str], phase: int) -> bytes:
        """What comes before the data region of a shard; `phase`: see `format.pack_header`."""
        return pack_header(self._headers[number], metadata, phase)

    def tensors(self, number: int, data: memoryview) -> str:
        """The records of a shard's tensors with the digests of their bytes in `data`, as JSON objects in a row."""
        records = []
        for start, end, record in self._tensors[number]:
            digests = '","'.join(digests_of(data[start:end]))
            records.append(f'{record}"{digests}"]}}' if digests else f"{record}]}}")
        return ",".join(records)


def _written(piece: Piece, number: int) -> list[Written]:
    found = []
    for entry in piece.entries:
        shape = list(entry["shape"])
        record = {
            "name": entry["name"],
            "dtype": entry["dtype"],
            "shape": shape,
            "global_shape": list(entry.get("global_shape", shape)),
            "offsets": list(entry.get("offsets", [0] * len(shape))),
            "shard": number,
            "start": entry["offset"] - piece.start,
            "size_bytes": entry["size_bytes"],
        }
        text = json.dumps(record, separators=(",", ":"))[:-1] + ',"digests":['
        found.append(Written(entry["offset"], entry["offset"] + entry["size_bytes"], text))
    return found


_kept: Layout | None = None
"""The last one. An agent has one rank, so there is no other."""
_lock = threading.Lock()


def layout_of(entries: list[dict[str, Any]], data_bytes: int, shard_bytes: int) -> Layout:
    """The last layout when it is still the same, else a new one."""
    global _kept  # noqa: PLW0603 - a cache of one
    shard_bytes = min(shard_bytes, checkpoint_format.SHARD_BYTES_TARGET)
    with _lock:
        kept = _kept
    same = kept is not None and (kept.data_bytes, kept.shard_bytes) == (data_bytes, shard_bytes)
    if kept is not None and same and kept.entries == entries:
        return kept
    made = Layout(entries, data_bytes, shard_bytes)
    with _lock:
        _kept = made
    return made
