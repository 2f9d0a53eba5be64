"""Writes a golden checkpoint with the orch that is installed: `python -m golden.make FOLDER`, in tests/; with a second
argument, `ranks`, one of two ranks that share what is the same.

Done once for a format version (and for every way in which a version was ever written); never repeated, since the
point is that what was written then is read now.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from golden.state import parts
from orch_workers.checkpoint import Catalog, commit, open_storage
from orch_workers.training.slots import Slot
from orch_workers.training.snapshot import Adapters, plan, write
from support.shared_parts import Ranks

JOB = "golden"
FIRST, SECOND = ((1, 1), 2), ((1, 2), 3)
"""Generation and step; the second one's generation went on from the first checkpoint."""


def make(folder: Path) -> None:
    catalog = Catalog(open_storage(str(folder)), JOB)
    catalog.begin_generation(FIRST[0])
    write_one(catalog, *FIRST)
    catalog.begin_generation(SECOND[0], FIRST[0], FIRST[1])
    write_one(catalog, *SECOND)


def make_ranks(folder: Path) -> None:
    """Model and optimizer are the same on both, what is odd differs."""
    catalog = Catalog(open_storage(str(folder)), JOB)
    catalog.begin_generation(FIRST[0])
    with tempfile.TemporaryDirectory() as temporary:
        Ranks(catalog, Path(temporary)).save(parts_of_rank, *FIRST)


def parts_of_rank(rank: int) -> dict[str, object]:
    found = parts(FIRST[1])
    return {**found, "odd": parts(FIRST[1] + rank)["odd"]}


def write_one(catalog: Catalog, generation: tuple[int, int], step: int) -> None:
    meta = {
        "step": step,
        "epoch": 1,
        "metrics": {"loss": 0.5, "bad": "nan"},
        "kind": "state",
        "frameworks": {},
    }
    snapshot = plan(parts(step), Adapters().codecs(), meta)
    with tempfile.TemporaryDirectory() as temporary:
        path = f"{temporary}/slot"
        Slot.create(path, snapshot.size_bytes)
        slot = Slot(path, writable=True)
        write(snapshot, slot, generation, step)
        commit(catalog, slot, code_digest="c0de" * 16)
        slot.close()


def expected(step: int) -> dict[str, dict[str, object]]:
    """Every tensor of the state by its path: what a reader in any language must find."""
    return collected(parts(step))


def collected(value: object) -> dict[str, dict[str, object]]:
    found: dict[str, dict[str, object]] = {}
    collect(value, "", found)
    return found


def collect(value: object, path: str, found: dict[str, dict[str, object]]) -> None:
    if isinstance(value, torch.Tensor):
        raw = value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        found[path] = {"shape": list(value.shape), "hex": raw.hex()}
    elif isinstance(value, np.ndarray):
        shape = list(value.shape) if value.dtype.kind in "biufc" and value.dtype.isnative else [value.nbytes]
        found[path] = {"shape": shape, "hex": value.tobytes().hex()}
    elif isinstance(value, dict):
        for key, item in value.items():
            collect(item, f"{path}.{key}" if path else str(key), found)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            collect(item, f"{path}.{index}", found)


if __name__ == "__main__":
    target = Path(sys.argv[1])
    if sys.argv[2:] == ["ranks"]:
        make_ranks(target)
        wanted = {str(rank): collected(parts_of_rank(rank)) for rank in (0, 1)}
    else:
        make(target)
        wanted = {str(step): expected(step) for _, step in (FIRST, SECOND)}
    (target / "expected.json").write_text(json.dumps(wanted))
