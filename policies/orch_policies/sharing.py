"""Who of a gang writes what: bytes that several ranks hold alike are written by one of them, evenly shared out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

LARGE_SHARE = 64
"""What is larger than so small a part of all that is shared is given away piece by piece, the largest first; the rest
in stretches, so that each rank writes what lies side by side."""


class Row(NamedTuple):
    """One entry of a rank's snapshot. Rows with the same `what` are the same bytes of the same piece of one tensor."""

    what: bytes
    size_bytes: int


def owners(rows: Mapping[int, Sequence[Row]]) -> dict[int, list[int]]:
    """Of each rank's rows, the rank that writes each. The same rows give the same answer, in whatever order they came.

    What only one rank has it writes itself. The other work is shared out so that all ranks write about as much.
    """
    holders: dict[bytes, list[int]] = {}
    sizes: dict[bytes, int] = {}
    for rank in sorted(rows):
        for row in rows[rank]:
            known = holders.setdefault(row.what, [])
            sizes[row.what] = row.size_bytes
            if rank not in known:
                known.append(rank)
    load = dict.fromkeys(sorted(rows), 0)
    owner: dict[bytes, int] = {}
    for what, ranks in holders.items():
        if len(ranks) == 1:
            owner[what] = ranks[0]
            load[ranks[0]] += sizes[what]
    shared = [what for what, ranks in holders.items() if len(ranks) > 1]
    large_bytes = sum(sizes[what] for what in shared) // LARGE_SHARE
    large = [what for what in shared if sizes[what] > large_bytes]
    for what in sorted(large, key=lambda what: (-sizes[what], what)):
        owner[what] = min(holders[what], key=lambda rank: (load[rank], rank))
        load[owner[what]] += sizes[what]
    groups: dict[tuple[int, ...], list[bytes]] = {}
    for what in shared:
        if what not in owner:
            groups.setdefault(tuple(holders[what]), []).append(what)
    for ranks_alike in sorted(groups):
        _stretches(groups[ranks_alike], ranks_alike, sizes, load, owner)
    return {rank: [owner[row.what] for row in held] for rank, held in rows.items()}


def _stretches(
    group: Sequence[bytes],
    ranks: Sequence[int],
    sizes: Mapping[bytes, int],
    load: dict[int, int],
    owner: dict[bytes, int],
) -> None:
    """Gives each rank a stretch of `group` that brings it to where all of them are level."""
    level = _level([load[rank] for rank in ranks], sum(sizes[what] for what in group))
    below = [rank for rank in ranks if load[rank] < level] or [
        min(ranks, key=lambda rank: (load[rank], rank))
    ]
    waiting = iter(sorted(below, key=lambda rank: (load[rank], rank)))
    rank = next(waiting)
    for what in group:
        # Half of an entry beyond the level is as near to it as half of one below.
        while load[rank] + sizes[what] // 2 > level and (following := next(waiting, None)) is not None:
            rank = following
        owner[what] = rank
        load[rank] += sizes[what]


def _level(loads: Sequence[int], amount: int) -> int:
    """How high the lowest of `loads` stand when `amount` has been poured into them."""
    ordered = sorted(loads)
    for count in range(1, len(ordered) + 1):
        level = (sum(ordered[:count]) + amount) // count
        if count == len(ordered) or level <= ordered[count]:
            return level
    raise AssertionError("unreachable")
