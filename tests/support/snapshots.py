"""Snapshots for tests: slot files filled as a training process fills them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from orch_workers.checkpoint import commit
from orch_workers.training.slots import Slot, aligned

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from orch_workers.checkpoint import Catalog

T = TypeVar("T")

DTYPES = {
    "bool": "BOOL",
    "uint8": "U8",
    "int8": "I8",
    "uint16": "U16",
    "int16": "I16",
    "uint32": "U32",
    "int32": "I32",
    "uint64": "U64",
    "int64": "I64",
    "float16": "F16",
    "float32": "F32",
    "float64": "F64",
    "complex64": "C64",
    "complex128": "C128",
}
META_ROOM_BYTES = 1 << 20


@dataclass
class State:
    """What a training process has in hand."""

    arrays: Mapping[str, np.ndarray]
    tree: Any = field(default_factory=lambda: {"answer": 42})
    more: Mapping[str, Any] = field(default_factory=dict)


def state(seed: int = 0, size: int = 1000) -> State:
    random = np.random.default_rng(seed)
    return State(
        {
            "model.weight": random.standard_normal((size, 3), dtype=np.float32),
            "model.bias": random.standard_normal(7),
            "count": np.array(seed, dtype=np.int64),
            "nothing": np.zeros((0, 5), dtype=np.float16),
        }
    )


def entries_of(state: State) -> tuple[list[dict[str, Any]], int]:
    entries, offset = [], 0
    for name, array in state.arrays.items():
        offset = aligned(offset)
        entries.append(
            {
                "name": name,
                "dtype": DTYPES[array.dtype.name],
                "shape": list(array.shape),
                "offset": offset,
                "size_bytes": array.nbytes,
            }
        )
        offset += array.nbytes
    return entries, offset


def fill(
    path: Path | str, state: State, *, generation: tuple[int, int], step: int, torn: bool = False
) -> None:
    """Fills an existing slot file; `torn`: the process is killed before the last store."""
    entries, data_bytes = entries_of(state)
    slot = Slot(str(path), writable=True)
    slot.begin(generation, step)
    data = slot.data()
    for entry, array in zip(entries, state.arrays.values(), strict=True):
        data[entry["offset"] : entry["offset"] + array.nbytes] = array.tobytes()
    data.release()
    if not torn:
        meta = {
            "tree": state.tree,
            "entries": entries,
            "step": step,
            "epoch": step // 10,
            "metrics": {"loss": 1 / (1 + step)},
            "kind": "state",
            "frameworks": {"numpy": np.__version__},
            **state.more,
        }
        slot.finish(generation, step, data_bytes, meta)
    slot.close()


def make(path: Path, state: State, *, generation: tuple[int, int] = (1, 1), step: int = 10) -> Slot:
    """A new READY slot, open for reading."""
    path.unlink(missing_ok=True)
    Slot.create(str(path), aligned(entries_of(state)[1]) + META_ROOM_BYTES)
    fill(path, state, generation=generation, step=step)
    return Slot(str(path))


def commit_state(
    catalog: Catalog,
    path: Path,
    state: State,
    *,
    generation: tuple[int, int],
    step: int,
    act: Callable[..., T] = commit,  # type: ignore[assignment]
    **more: Any,
) -> T:
    """What `act` makes of a slot with that state, made at `path`: a checkpoint."""
    slot = make(path, state, generation=generation, step=step)
    try:
        return act(catalog, slot, **more)
    finally:
        slot.close()


def arrays_in(path: Path | str) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """What a slot holds: name → (dtype, shape, bytes)."""
    slot = Slot(str(path))
    _, meta = slot.read()
    data = slot.data()
    found = {
        e["name"]: (e["dtype"], tuple(e["shape"]), bytes(data[e["offset"] : e["offset"] + e["size_bytes"]]))
        for e in meta["entries"]
    }
    data.release()
    slot.close()
    return found


def arrays_of(state: State) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    return {name: (DTYPES[a.dtype.name], a.shape, a.tobytes()) for name, a in state.arrays.items()}
