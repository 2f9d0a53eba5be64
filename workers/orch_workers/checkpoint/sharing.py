"""What is the same on several ranks is written by one of them. That it is the same is proved by digests, never assumed.

Each rank takes the digests of all that it holds and lays them before the others (`Agreement`); what has the same
name, type, shape, place in the whole and digests is the same. A rank's manifest then says of what it left to another
one which rank that is, with the digests of its own bytes; the commit, and every reader, compares them with what is
there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import xxhash

from orch_policies.sharing import Row
from orch_workers.checkpoint.errors import Damaged
from orch_workers.checkpoint.format import RankManifest, SharedRecord, TensorRecord, check_entries, digests_of
from orch_workers.checkpoint.layout import Digests
from orch_workers.training.slots import aligned

HASHING_AT_ONCE = 4


class Agreement(Protocol):
    """Of the ranks, about one step."""

    def offer(self, rows: Sequence[Row]) -> None:
        """What this rank holds, for the others to compare with; returns at once."""

    def owners(self) -> tuple[int, ...] | None:
        """The rank that writes each of these rows, waited for. None: nobody knows, so this rank writes all it holds."""


def rows_of(entries: list[dict[str, Any]], data: memoryview) -> tuple[list[Row], Digests]:
    """Of a snapshot, in the order of the entries' offsets. ValueError for entries that cannot be stored."""
    ordered = check_entries(entries, len(data))
    stretches = [data[entry["offset"] : entry["offset"] + entry["size_bytes"]] for entry in ordered]
    with ThreadPoolExecutor(HASHING_AT_ONCE, thread_name_prefix="digests") as pool:
        digests = list(pool.map(digests_of, stretches, chunksize=64))
    rows = [
        Row(_what(entry, found), aligned(entry["size_bytes"]))
        for entry, found in zip(ordered, digests, strict=True)
    ]
    return rows, digests


def _what(entry: Mapping[str, Any], digests: Sequence[str]) -> bytes:
    shape = list(entry["shape"])
    place = [entry.get("global_shape", shape), entry.get("offsets", [0] * len(shape))]
    said = json.dumps([entry["name"], entry["dtype"], shape, *place, *digests], separators=(",", ":"))
    return xxhash.xxh3_128_digest(said.encode())


def check_same(shared: SharedRecord, found: TensorRecord | None) -> None:
    """Whether what another rank has written under that name is the same. Damaged if not."""
    if found is None or not found.is_same_as(shared):
        raise Damaged(
            f"rank manifest: tensor {shared.name!r} is said to be written by rank {shared.rank}, which "
            + ("has not written it" if found is None else "has another one of that name")
        )


def check_shared(parts: Sequence[RankManifest]) -> None:
    """Of all ranks of one step: whether everything that one has left to another is there. Damaged if not."""
    if not any(part.shared for part in parts):
        return
    known = {part.rank: {tensor.name: tensor for tensor in part.tensors} for part in parts}
    for part in parts:
        for shared in part.shared:
            check_same(shared, known.get(shared.rank, {}).get(shared.name))
