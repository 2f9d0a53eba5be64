"""Export to PyTorch: a file that `torch.load(path, weights_only=True)` takes and `load_state_dict` understands."""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict, deque
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from orch_workers.checkpoint.content import stream
from orch_workers.checkpoint.errors import CheckpointError
from orch_workers.checkpoint.exporting import OWN_PART, Exported, new_file
from orch_workers.checkpoint.trees import entries, joined
from orch_workers.checkpoint.whole import whole_tensors
from orch_workers.training.arrays import ArrayCodec
from orch_workers.training.pytorch import TensorCodec
from orch_workers.training.tree import Decoder

if TYPE_CHECKING:
    from orch_workers.checkpoint.content import Content, Moved

WITHOUT_STATE_DICT = ("value", "tensor", "ndarray")
"""Kinds of arguments that are no object with a state dict."""
_PLAIN = (type(None), bool, int, float, complex, str, bytes, bytearray)


def write_torch(
    content: Content,
    trees: dict[str, Any],
    path: Path,
    *,
    replace: bool,
    moved: Moved | None,
) -> Exported:
    """The state as PyTorch's own `state_dict` has it, optimizer parameters numbered again. What weights-only loading
    refuses (a deque, a NumPy array) becomes its nearest kin, and is noted. The arguments are held in memory.
    """
    torch = _torch()
    notes: list[str] = []
    values = _values(content, trees, torch, notes, moved)
    whole = values if len(values) > 1 else next(iter(values.values()))
    return _written(torch, whole, path, trees, notes, replace=replace)


def write_plain(
    content: Content, trees: dict[str, Any], path: Path, *, replace: bool, moved: Moved | None
) -> Exported:
    """One dict as the tutorials have it: ``{epoch, step, NAME_state_dict…, loss…}``; values under their own names,
    metrics too, where no argument has that name.
    """
    torch = _torch()
    notes: list[str] = []
    kinds = _kinds(content)
    plain: dict[str, Any] = {"epoch": content.manifest.epoch, "step": content.point.step}
    for name, value in _values(content, trees, torch, notes, moved).items():
        plain[name if kinds.get(name, "value") in WITHOUT_STATE_DICT else f"{name}_state_dict"] = value
    for name, value in (content.manifest.metrics or {}).items():
        plain.setdefault(name, float(value))
    return _written(torch, plain, path, trees, notes, replace=replace)


def _torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise CheckpointError(
            "an export to torch needs PyTorch here, which is not installed: `pip install torch`, or export with "
            "`--to safetensors`"
        ) from error
    return torch


def _values(
    content: Content, trees: dict[str, Any], torch: Any, notes: list[str], moved: Moved | None
) -> dict[str, Any]:
    kinds = _kinds(content)
    values = {}
    for name, tree in trees.items():
        value = _decoded(content, tree, torch, moved)
        if kinds.get(name) == "optimizer":
            value = _numbered(value)
        values[name] = _Safe(torch, notes).of(value, name)
    return values


def _written(
    torch: Any, whole: Any, path: Path, trees: dict[str, Any], notes: list[str], *, replace: bool
) -> Exported:
    def loads(file: Path) -> None:
        torch.load(file, weights_only=True, mmap=True)

    with new_file(path, replace=replace, check=loads) as file:
        torch.save(whole, file)
    tensors = sum(1 for tree in trees.values() for _ in entries(tree))
    return Exported(path, tuple(trees), tensors, path.stat().st_size, tuple(notes))


def _kinds(content: Content) -> dict[str, str]:
    own = content.tree().get(OWN_PART)
    kinds = own.get("kinds") if isinstance(own, dict) else None
    return cast("dict[str, str]", kinds) if isinstance(kinds, dict) else {}


def _decoded(content: Content, tree: Any, torch: Any, moved: Moved | None) -> Any:
    wholes = whole_tensors(content, {entry for _, entry in entries(tree)})
    together = {whole.pieces[0]: entry for entry, whole in wholes.items() if not whole.is_divided}
    held = {entry: memoryview(bytearray(ref.record.size_bytes)) for ref, entry in together.items()}
    for part in stream(content.catalog, together):
        held[together[part.ref]][part.start : part.start + len(part.data)] = part.data
        if moved is not None:
            moved(len(part.data))

    def fetch(entry: str) -> tuple[memoryview, str, tuple[int, ...]]:
        whole = wholes[entry]
        data = held[entry] if entry in held else whole.read(content)
        return data, whole.dtype, tuple(whole.shape)

    try:
        return Decoder(fetch, [TensorCodec(torch), ArrayCodec(np)]).decode(tree)
    except ValueError as error:
        raise CheckpointError(str(error)) from error


def _numbered(state: Any) -> Any:
    """Optimizer state as `Optimizer.state_dict` has it: parameters by number, in the order of the groups."""
    if not (isinstance(state, dict) and isinstance(state.get("param_groups"), list)):
        return state
    numbers: dict[Any, int] = {}
    groups = []
    for group in state["param_groups"]:
        names = group["params"]
        numbers.update({name: len(numbers) + index for index, name in enumerate(names)})
        groups.append({**group, "params": [numbers[name] for name in names]})
    held = {numbers.get(key, key): value for key, value in state["state"].items()}
    return {**state, "state": held, "param_groups": groups}


class _Safe:
    """Turns values into what weights-only loading takes."""

    def __init__(self, torch: Any, notes: list[str]) -> None:
        self._torch, self._notes = torch, notes

    def of(self, value: Any, path: str) -> Any:
        torch = self._torch
        if isinstance(value, torch.Tensor):
            return value.detach()  # without the note of the device that it came from
        if type(value) in _PLAIN or isinstance(value, torch.Size | torch.dtype | torch.device):
            return value
        if isinstance(value, np.ndarray | np.generic):
            return self._from_numpy(value, path)
        if isinstance(value, dict):
            return self._mapping(value, path)
        if isinstance(value, list | tuple):
            return type(value)(self.of(item, joined(path, str(at))) for at, item in enumerate(value))
        if isinstance(value, deque | range):
            self._note(value, "list", path)
            return [self.of(item, joined(path, str(at))) for at, item in enumerate(value)]
        if isinstance(value, slice):
            self._note(value, "tuple", path)
            return (value.start, value.stop, value.step)
        if isinstance(value, set | frozenset):
            if isinstance(value, frozenset):
                self._note(value, "set", path)
            return {self._hashable(item, path) for item in value}
        raise CheckpointError(f"{path}: torch.load(weights_only=True) takes no {type(value).__name__}")

    def _mapping(self, value: dict[Any, Any], path: str) -> Any:
        made: dict[Any, Any] = type(value)() if type(value) in (dict, OrderedDict, Counter) else {}
        if isinstance(value, defaultdict):
            self._note(value, "dict", path)
        for key, item in value.items():
            made[self._hashable(key, path)] = self.of(item, joined(path, str(key)))
        if isinstance(value, OrderedDict):
            for name, attribute in vars(value).items():  # PyTorch's `_metadata`
                setattr(made, name, self.of(attribute, joined(path, name)))
        return made

    def _hashable(self, key: Any, path: str) -> Any:
        if isinstance(key, frozenset | range | slice):
            raise CheckpointError(
                f"{path}: torch.load(weights_only=True) takes no {type(key).__name__} in a set or as a key"
            )
        return self.of(key, path)

    def _from_numpy(self, value: Any, path: str) -> Any:
        if value.dtype.kind not in "biufc":
            raise CheckpointError(
                f"{path}: torch.load(weights_only=True) takes no NumPy values of dtype {value.dtype}; "
                f"export with `--to safetensors`, or leave the argument out with `--only`"
            )
        if isinstance(value, np.generic):
            self._note(value, "Python number", path)
            return value.item()
        self._note(value, "tensor", path)
        native = value.astype(value.dtype.newbyteorder("="), copy=False)
        return self._torch.from_numpy(native)

    def _note(self, value: Any, became: str, path: str) -> None:
        self._notes.append(f"{path}: a {type(value).__name__} became a {became}")


__all__ = ["write_torch"]
