"""A script's own `.pth` file as a checkpoint: what `submit --from` begins with. Only ever read as weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orch_workers.checkpoint.errors import CheckpointError
from orch_workers.training.objects import StateHandler

SUFFIX = "_state_dict"
STEPS = ("step", "global_step", "steps")
BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
"""Tensors of a module that no optimizer has, by the end of their names."""


@dataclass(frozen=True)
class Imported:
    """`state`: by name, as `Checkpointer.save` takes it; `notes`: what is not quite as it was in the file."""

    state: Mapping[str, Any]
    step: int | None
    epoch: int | None
    metrics: Mapping[str, float]
    notes: tuple[str, ...]


class _Stored(StateHandler):
    """A state that is there already, as if its object had just been asked for it."""

    def __init__(self, name: str, kind: str, state: Any) -> None:
        super().__init__(name, state)
        self.kind = kind

    def capture(self) -> Any:
        return self.target


def read_torch(path: Path) -> Imported:
    """`{epoch, model_state_dict, optimizer_state_dict, loss}` and its kin, or a bare state dict (then `model`).

    CheckpointError where torch cannot read it as weights alone, or nothing in it is a state.
    """
    try:
        import torch
    except ImportError as error:
        raise CheckpointError("to import a torch file needs PyTorch here: `pip install torch`") from error
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise CheckpointError(
            f"{path} does not load as weights alone ({type(error).__name__}: {reason})"
        ) from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} holds a {type(found).__name__}, and no dict of states")
    if found and all(isinstance(value, torch.Tensor) for value in found.values()):
        found = {f"model{SUFFIX}": found}
    return _sorted_out(found, torch, path)


def _sorted_out(found: dict[Any, Any], torch: Any, path: Path) -> Imported:
    notes: list[str] = []
    state: dict[str, Any] = {}
    optimizers: dict[str, Any] = {}
    metrics: dict[str, float] = {}
    for key, value in found.items():
        name = str(key).removesuffix(SUFFIX)
        if isinstance(value, dict) and "param_groups" in value:
            optimizers[name] = value
        elif (
            isinstance(value, dict) and value and all(isinstance(one, torch.Tensor) for one in value.values())
        ):
            state[name] = _Stored(name, "module", value)
        elif key in (*STEPS, "epoch"):
            continue
        elif isinstance(value, int | float) and not isinstance(value, bool):
            metrics[name] = float(value)
        else:
            state[name] = value
    modules = [(name, handler.target) for name, handler in state.items() if isinstance(handler, _Stored)]
    if not modules:
        raise CheckpointError(
            f"{path} has no state dict of a module in it; it has {', '.join(map(str, found))}"
        )
    for name, value in optimizers.items():
        named = _named(value, modules)
        if named is None:
            notes.append(f"{name}: its parameters could not be told apart, so it is left out")
        else:
            state[name] = _Stored(name, "optimizer", named)
    step = next((int(found[key]) for key in STEPS if isinstance(found.get(key), int)), None)
    epoch = found.get("epoch")
    return Imported(state, step, epoch if isinstance(epoch, int) else None, metrics, tuple(notes))


def _named(optimizer: dict[str, Any], modules: list[tuple[str, dict[str, Any]]]) -> dict[str, Any] | None:
    """With parameters by name, as orch keeps them. PyTorch numbers them in the order of the groups, which is that of
    the module where there is one group; shapes of what is kept for each must agree. None where that cannot be.
    """
    names = [
        (f"{argument}.{name}", tensor)
        for argument, tensors in modules
        for name, tensor in tensors.items()
        if not name.endswith(BUFFERS)
    ]
    groups = optimizer["param_groups"]
    numbers = [number for group in groups for number in group["params"]]
    if len(groups) != 1 or len(numbers) != len(names):
        return None
    by_number = dict(zip(numbers, names, strict=True))
    state = {}
    for number, kept in optimizer.get("state", {}).items():
        name, tensor = by_number[number]
        shapes = {tuple(value.shape) for value in kept.values() if getattr(value, "ndim", 0)}
        if shapes - {tuple(tensor.shape)}:
            return None
        state[name] = kept
    named = [{**group, "params": [by_number[number][0] for number in group["params"]]} for group in groups]
    return {**optimizer, "state": state, "param_groups": named}
