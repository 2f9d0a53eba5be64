"""The state in the golden checkpoints: small, and with everything a checkpoint can hold."""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict, deque
from typing import Any

import numpy as np
import torch
from torch import nn


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.Embedding(3, 4)
        self.norm = nn.BatchNorm1d(4)
        self.outside = nn.Linear(4, 3, bias=False)
        self.outside.weight = self.inside.weight


def trained(step: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    """After one step of Adam, from numbers that no random generator makes."""
    model = Tied()
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            parameter.copy_(torch.arange(parameter.numel()).reshape(parameter.shape) / 7 + number + step)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.5)
    for parameter in model.parameters():
        parameter.grad = torch.arange(parameter.numel()).reshape(parameter.shape) / 3 - 1
    optimizer.step()
    return model, optimizer


def odd_tensors(step: int) -> dict[str, Any]:
    raw = torch.arange(8, dtype=torch.uint8) + step
    named = {
        name: raw.clone().view(getattr(torch, name))
        for name in (
            "float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu", "bfloat16", "float16", "float32", "float64", "int8",
            "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "complex64",
        )
    }  # fmt: skip
    return {
        **named,
        "bool": torch.tensor([True, False]),
        "complex128": torch.tensor([1.5 - 2j], dtype=torch.complex128),
        "scalar": torch.tensor(float(step)),
        "empty": torch.zeros(0, 3, dtype=torch.int16),
        "transposed": torch.arange(6.0).reshape(2, 3).t(),
        "array": np.arange(6, dtype=">i4").reshape(3, 2),
        "dates": np.array(["2026-11-21"], dtype="M8[D]"),
    }


def values(step: int) -> dict[str, Any]:
    return {
        "plain": [None, True, False, step, 1.25, "text ü", {"key": []}],
        "far": [float("inf"), float("-inf"), 1 << 70, -(1 << 70)],
        "containers": [
            (1, (2,)), {1, 2}, frozenset({"a"}), {3: "three", (4, 5): None}, OrderedDict(z=1, a=2),
            Counter("aab"), defaultdict(list, x=[1]), deque([1, 2], 3), range(1, 9, 2), slice(1, None, 2),
        ],
        "bytes": [b"short", b"long " * 60, bytearray(b"array")],
        "complex": 1 - 2j,
        "numpy": np.float32(0.1),
        "torch": [torch.Size([2, 3]), torch.float16, torch.device("cpu")],
    }  # fmt: skip


def parts(step: int) -> dict[str, Any]:
    """As a training process gives it to the snapshot; the optimizer by its parameters' names."""
    from orch_workers.training.optimizers import OptimizerHandler

    model, optimizer = trained(step)
    return {
        "model": model.state_dict(),
        "optimizer": OptimizerHandler("optimizer", optimizer, {"model": model}, {}).capture(),
        "odd": odd_tensors(step),
        "values": values(step),
        "~orch": {"kinds": {"model": "module", "optimizer": "optimizer", "odd": "value", "values": "value"}},
    }
