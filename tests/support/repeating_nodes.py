"""The part of `python -m tests.soak` that loses nodes, each way many times over."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from support import losing_nodes
from support.accounts import keep_timeline
from support.cutting_off import cut_off, refusal
from support.holding_a_gpu import gpu_still_held
from support.losing_cluster import lease_over
from support.nodes import Pool
from support.recovery import Victim

if TYPE_CHECKING:
    import random

    from support.server import Server


def _gpu(server: Server, pool: Pool, rng: random.Random, _undisturbed: bytes) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="orch-gpu-") as folder:
        return gpu_still_held(server, pool, rng, Path(folder))


ROWS: dict[str, Callable[[Server, Pool, random.Random, bytes], dict[str, Any]]] = {
    "killed": losing_nodes.killed,
    "drained": losing_nodes.drained,
    "terminated": losing_nodes.terminated,
    "frozen": losing_nodes.frozen,
    "gpu held": _gpu,
}


def nodes(server: Server, rng: random.Random, count: int) -> dict[str, Any]:
    """Each row `count` times, in random order, and the lease as often on servers of its own."""
    calm = Victim(server)
    calm.finish()
    undisturbed = calm.final_bytes()
    turns = [name for name in ROWS for _ in range(count)]
    rng.shuffle(turns)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in [*ROWS, "cluster silent"]}
    pool = Pool(server)
    try:
        for number, name in enumerate(turns):
            try:
                found[name].append(ROWS[name](server, pool, rng, undisturbed))
                newest = server.client().jobs()[0]["id"]
                keep_timeline(server, newest, f"node_{name.replace(' ', '_')}", f"its node, {name}.")
            except AssertionError as error:
                raise AssertionError(f"turn {number} ({name}): {error}") from error
    finally:
        pool.close()
    for _ in range(count):
        found["cluster silent"].append(lease_over(rng))
    reason = refusal()
    if reason:
        print(f"no node is cut off: {reason}; the frozen ones stand for it", file=sys.stderr)
    else:
        found["cut off"] = [cut_off(rng) for _ in range(count)]
    return {"rows": {name: _ranges(rounds) for name, rounds in found.items()}, "equal_bytes": True}


def _ranges(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    names = dict.fromkeys(name for one in rounds for name in one)
    values = {name: [one[name] for one in rounds if one.get(name) is not None] for name in names}
    return {"times": len(rounds), **{name: [min(seen), max(seen)] for name, seen in values.items() if seen}}
