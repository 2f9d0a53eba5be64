"""Tensors that are divided over the ranks (DTensor, and with it FSDP2): each rank keeps its own piece, and says where
in the whole it lies.
"""

from __future__ import annotations

import sys
from typing import Any

from .errors import UnsupportedStateError


def may_be_sharded() -> bool:
    """Whether this script has what makes divided tensors."""
    return "torch.distributed.tensor" in sys.modules


def is_sharded(value: Any) -> bool:
    """Whether it is a DTensor. Never imports what makes them: a script that has none pays nothing."""
    module = sys.modules.get("torch.distributed.tensor")
    kind = getattr(module, "DTensor", None)
    return kind is not None and isinstance(value, kind)


def local_of(value: Any) -> Any:
    """This rank's piece, sharing its memory; any other value as it is."""
    return value.detach().to_local() if is_sharded(value) else value


def locals_of(values: dict[str, Any]) -> dict[str, Any]:
    return {name: local_of(value) for name, value in values.items()}


def place_of(value: Any, path: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shape of the whole, and where in it the piece begins.

    As torch.distributed.checkpoint finds it, by the same function of torch's.
    """
    if any(placement.is_partial() for placement in value.placements):
        raise UnsupportedStateError(
            f"{path}: a checkpoint cannot hold a DTensor whose parts are yet to be summed (Partial); redistribute it"
        )
    from torch.distributed.tensor import _utils

    _, offsets = _utils.compute_local_shape_and_global_offset(
        value.shape, value.device_mesh, value.placements
    )
    return tuple(value.shape), tuple(offsets)


def places_of(values: dict[str, Any], prefix: str) -> list[dict[str, Any]]:
    """What this rank holds of those that are divided, as it is told to the agent; by the names of their entries."""
    found = []
    for name, value in values.items():
        if is_sharded(value):
            path = f"{prefix}.{name}" if name else prefix
            whole, offsets = place_of(value, path)
            shape = list(local_of(value).shape)
            found.append(
                {"entry": path, "global_shape": list(whole), "offsets": list(offsets), "shape": shape}
            )
    return found


def like(live: Any, piece: Any) -> Any:
    """`piece` as a DTensor that is divided as `live` is, where its shape is that of live's own piece; else itself."""
    if not is_sharded(live) or is_sharded(piece):
        return piece
    if tuple(piece.shape) != tuple(local_of(live).shape):
        return piece
    kind = sys.modules["torch.distributed.tensor"].DTensor
    made = kind.from_local(
        piece.to(local_of(live).device),
        live.device_mesh,
        live.placements,
        run_check=False,
        shape=live.shape,
        stride=live.stride(),
    )
    if hasattr(piece, "orch_device"):
        made.orch_device = piece.orch_device
    return made
