"""Tensors as bytes and bytes as tensors, without a copy."""

from __future__ import annotations

import sys
import warnings
from typing import Any, Sequence


def torch_module() -> Any:
    """The user's torch if it has been imported, else None."""
    return sys.modules.get("torch")


def view_of(torch: Any, data: memoryview, dtype: Any, shape: Sequence[int]) -> Any:
    """The bytes as a tensor in C order that shares their memory; not for no bytes at all."""
    if data.readonly:
        with warnings.catch_warnings():  # bytes that are mapped read-only are only read
            warnings.simplefilter("ignore", UserWarning)
            flat = torch.frombuffer(data, dtype=torch.uint8)
    else:
        flat = torch.frombuffer(data, dtype=torch.uint8)
    return flat.view(dtype).view(tuple(shape))


def is_plain(tensor: Any) -> bool:
    """Whether its bytes are one run in this process's memory, and mean what they say."""
    on_host = tensor.device.type == "cpu"
    return bool(on_host and tensor.is_contiguous() and not tensor.is_conj() and not tensor.is_neg())


def bytes_of(torch: Any, tensor: Any) -> Any:
    """A plain tensor's bytes as a flat NumPy array that shares its memory."""
    # Not reshape(-1): a single element may have any stride, which view(dtype) then refuses.
    return torch.as_strided(tensor.detach(), (tensor.numel(),), (1,)).view(torch.uint8).numpy()
