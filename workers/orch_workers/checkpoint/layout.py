"""How the entries of a snapshot lie in shards, kept from one checkpoint to the next.

Between two snapshots of a job the bytes change and the layout does not. Names, dtypes, shapes and places are
therefore checked and turned into JSON once, and with 20,000 small tensors a checkpoint costs little more than
their digests.

Where ranks share the writing of what is the same on them, a rank writes some of its entries: they lie in its shards
as if the others had never been between them.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
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
from orch_workers.training.slots import aligned

Digests = Sequence[tuple[str, ...]]
"""Of each entry, in the order of their offsets."""


class Share(NamedTuple):
    """Who writes what: of each entry of `rank`, in the order of their offsets, the rank that does."""

    rank: int
    owners: tuple[int, ...]


class Run(NamedTuple):
    """Bytes that lie side by side in the snapshot, [start, end), and in the shards' data regions, from `at` on."""

    at: int
    start: int
    end: int


class Written(NamedTuple):
    """One entry: its number, the bytes [start, end) of the snapshot, and its record in the rank manifest up to the
    digests.
    """

    number: int
    start: int
    end: int
    record: str


class Layout:
    """Everything about a snapshot's shards that follows from its entries alone.

    Raises ValueError for entries that cannot be stored as they are. `shard_bytes`: see `format.cut`. `share`: the
    shards hold what this rank is to write; without one, everything.
    """

    def __init__(
        self, entries: list[dict[str, Any]], data_bytes: int, shard_bytes: int, share: Share | None = None
    ) -> None:
        self.entries, self.key = entries, (data_bytes, shard_bytes, share)
        ordered = check_entries(entries, data_bytes)
        numbers = {entry["name"]: number for number, entry in enumerate(ordered)}
        packed, self._runs, self.data_bytes = ordered, [Run(0, 0, data_bytes)], data_bytes
        self._shared: list[tuple[int, str]] = []
        if share is not None:
            mine = [entry for entry, owner in zip(ordered, share.owners, strict=True) if owner == share.rank]
            packed, self._runs, self.data_bytes = _packed(mine, data_bytes)
            self._shared = [
                (number, _described(entry, {"rank": owner}))
                for number, (entry, owner) in enumerate(zip(ordered, share.owners, strict=True))
                if owner != share.rank
            ]
        self.pieces = cut(packed, self.data_bytes, shard_bytes)
        self._headers = [header_entries(piece) for piece in self.pieces]
        self._tensors = [
            [
                _written(piece, shard, entry, number, ordered[number]["offset"])
                for entry in piece.entries
                for number in (numbers[entry["name"]],)
            ]
            for shard, piece in enumerate(self.pieces)
        ]

    def header(self, shard: int, metadata: dict[str, str], phase: int) -> bytes:
        """What comes before the data region of a shard; `phase`: see `format.pack_header`."""
        return pack_header(self._headers[shard], metadata, phase)

    def body(self, shard: int, data: memoryview) -> list[memoryview]:
        """The data region of a shard, out of the snapshot's."""
        piece, found = self.pieces[shard], []
        for run in self._runs:
            first, last = max(piece.start, run.at), min(piece.end, run.at + run.end - run.start)
            if first < last:
                found.append(data[run.start + first - run.at : run.start + last - run.at])
        return found

    def tensors(self, shard: int, data: memoryview, known: Digests | None = None) -> str:
        """The records of a shard's tensors with the digests of their bytes in `data`, as JSON objects in a row."""
        records = []
        for number, start, end, record in self._tensors[shard]:
            digests = digests_of(data[start:end]) if known is None else known[number]
            records.append(_with_digests(record, digests))
        return ",".join(records)

    def shared(self, known: Digests) -> list[str]:
        """The records of what other ranks write, as JSON objects."""
        return [_with_digests(record, known[number]) for number, record in self._shared]


def _packed(
    entries: Sequence[dict[str, Any]], data_bytes: int
) -> tuple[list[dict[str, Any]], list[Run], int]:
    """The entries with offsets as if nothing else had been between them, where that comes from, and the length."""
    packed, runs, end = [], list[Run](), 0
    for entry in entries:
        start = entry["offset"]
        stop = min(aligned(start + entry["size_bytes"]), data_bytes)
        if runs and runs[-1].end == start:
            runs[-1] = runs[-1]._replace(end=stop)
        else:
            runs.append(Run(end, start, stop))
        packed.append({**entry, "offset": end})
        end += stop - start
    return packed, runs, end


def _written(piece: Piece, shard: int, entry: dict[str, Any], number: int, start: int) -> Written:
    text = _described(entry, {"shard": shard, "start": entry["offset"] - piece.start})
    return Written(number, start, start + entry["size_bytes"], text)


def _described(entry: dict[str, Any], where: dict[str, int]) -> str:
    """A tensor's record without its digests."""
    shape = list(entry["shape"])
    record = {
        "name": entry["name"],
        "dtype": entry["dtype"],
        "shape": shape,
        "global_shape": list(entry.get("global_shape", shape)),
        "offsets": list(entry.get("offsets", [0] * len(shape))),
        **where,
        "size_bytes": entry["size_bytes"],
    }
    return json.dumps(record, separators=(",", ":"))[:-1] + ',"digests":['


def _with_digests(record: str, digests: Sequence[str]) -> str:
    joined = '","'.join(digests)
    return f'{record}"{joined}"]}}' if digests else f"{record}]}}"


_kept: Layout | None = None
"""The last one. An agent has one rank, so there is no other."""
_lock = threading.Lock()


def layout_of(
    entries: list[dict[str, Any]], data_bytes: int, shard_bytes: int, share: Share | None = None
) -> Layout:
    """The last layout when it is still the same, else a new one."""
    global _kept  # noqa: PLW0603 - a cache of one
    shard_bytes = min(shard_bytes, checkpoint_format.SHARD_BYTES_TARGET)
    with _lock:
        kept = _kept
    if kept is not None and kept.key == (data_bytes, shard_bytes, share) and kept.entries == entries:
        return kept
    made = Layout(entries, data_bytes, shard_bytes, share)
    with _lock:
        _kept = made
    return made
