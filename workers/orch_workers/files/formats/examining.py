"""What a file that a script wrote is, whether it is whole, and which step it is of. Nothing of it is ever executed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import IO, Any, NamedTuple

from orch_workers.files.formats import bundles, flat, hdf5, pickles, zips

JSON_BYTES_MAX = 16 << 20
STEP_KEYS = ("global_step", "step", "iteration", "iter", "steps", "iterations", "trained_steps")
EPOCH_KEYS = ("epoch", "current_epoch", "epochs", "last_epoch")

_ZIP, _PICKLE = b"PK", b"\x80"
_COMPRESSED = (b"\x1f\x8b", b"x\x9c", b"x\x01", b"x\xda", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")
_HDF5 = (".h5", ".hdf5", ".he5")
_EXPECTED = {
    **dict.fromkeys((".pt", ".pth", ".tar"), ("torch", "pickle", "zip")),
    **dict.fromkeys(_HDF5, ("hdf5",)),
    ".keras": ("keras",),
    ".npz": ("npz", "zip"),
    ".npy": ("npy",),
    ".safetensors": ("safetensors",),
}
"""What a file of that name must be to be whole: one that was cut short at its very beginning looks like nothing."""
_STEP_IN_NAME = re.compile(
    r"(?:global_?step|step|iter(?:ation)?|ckpt|checkpoint)[-_=.]?0*(\d+)", re.IGNORECASE
)
_EPOCH_IN_NAME = re.compile(r"(?<![a-z])(?:epoch|ep)[-_=.]?0*(\d+)", re.IGNORECASE)


class Examined(NamedTuple):
    """`kind` "" for what is not known. `problem`: why it is not whole; "" when it is, or when nobody can tell."""

    kind: str
    problem: str = ""
    step: int | None = None
    epoch: int | None = None

    @property
    def is_known(self) -> bool:
        return bool(self.kind)


def examine(path: Path, name: str) -> Examined:
    """`name`: as the script knows it; `path`: where it can be read, and does not change meanwhile."""
    suffix = Path(name).suffix.lower()
    with path.open("rb") as stream:
        kind, problem, values = _look(stream, suffix)
    expected = _EXPECTED.get(suffix)
    if expected is not None and kind not in expected:
        return Examined(expected[0], problem or f"it does not open as {expected[0]}")
    step, epoch = numbers_in_name(name)
    if isinstance(values, dict):
        found = _first(values, STEP_KEYS), _first(values, EPOCH_KEYS)
        step, epoch = (b if a is None else a for a, b in zip(found, (step, epoch), strict=True))
    return Examined(kind, problem, step, epoch)


def _look(stream: IO[bytes], suffix: str) -> tuple[str, str, Any]:
    """(kind, problem, plain values)"""
    head = stream.read(8)
    if head.startswith(_ZIP):
        return zips.examine(stream)
    if head == hdf5.SIGNATURE or suffix in _HDF5:
        return "hdf5", hdf5.problem_of(stream), None
    if suffix == ".safetensors":
        return "safetensors", flat.safetensors_problem(stream), None
    if head.startswith(flat.NPY_MAGIC) or suffix == ".npy":
        return "npy", flat.npy_problem(stream), None
    if suffix == ".index" and not head.startswith(b"{"):
        return "tensorflow", bundles.read_index(stream).problem, None
    if head[:1] == _PICKLE and head[1:2] <= b"\x05":
        return "pickle", *pickles.examine(stream)
    if suffix in {".pkl", ".pickle"} and not head.startswith(_COMPRESSED):
        return "pickle", *pickles.examine(stream)
    if suffix == ".json":
        return "json", *_json(stream)
    return "", "", None


def _json(stream: IO[bytes]) -> tuple[str, Any]:
    stream.seek(0)
    data = stream.read(JSON_BYTES_MAX + 1)
    if len(data) > JSON_BYTES_MAX:
        return "", None
    try:
        return "", json.loads(data)
    except (ValueError, RecursionError) as error:
        return f"it is no whole JSON ({error})", None


def _first(values: dict[Any, Any], keys: tuple[str, ...]) -> int | None:
    for key in keys:
        value = values.get(key)
        if isinstance(value, (int, float)) and not isinstance(value, bool) and value == int(value) >= 0:
            return int(value)
    return None


def numbers_in_name(name: str) -> tuple[int | None, int | None]:
    """(step, epoch), of `epoch=3-step=400.ckpt` or `checkpoint-500/model.safetensors`."""
    found = []
    for pattern in (_STEP_IN_NAME, _EPOCH_IN_NAME):
        numbers = pattern.findall(name)
        found.append(int(numbers[-1]) if numbers and len(numbers[-1]) <= 15 else None)
    return found[0], found[1]
