"""The states that are measured: a GPT-2-small with Adam, and very many small tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

SMALL_SHARE = 100
MANY = 20_000
KIB = 1024
NAMES = ("gpt2", "many-1KiB", "many-4KiB", "many-64KiB")


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.c_attn, self.c_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.c_fc, self.c_out = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)


class Gpt2(nn.Module):
    """GPT-2-small's 148 parameters; nobody runs it."""

    def __init__(self, width: int, words: int) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(words, width), nn.Embedding(1024, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(12))
        self.ln_f = nn.LayerNorm(width)


class Pair(nn.Module):
    def __init__(self, size_bytes: int) -> None:
        super().__init__()
        self.weight, self.bias = (nn.Parameter(torch.randn(size_bytes // 4)) for _ in range(2))


def make(name: str, *, small: bool) -> dict[str, Any]:
    """Model and optimizer with all of its state, as after many steps."""
    torch.manual_seed(1)
    if name == "gpt2":
        model: nn.Module = Gpt2(96, 5_000) if small else Gpt2(768, 50_257)
        optimizer: Any = torch.optim.Adam(model.parameters(), lr=1e-4)
    else:
        size_bytes = int(name.removeprefix("many-").removesuffix("KiB")) * KIB
        count = MANY // (SMALL_SHARE if small else 1)
        model = nn.Sequential(*(Pair(size_bytes) for _ in range(count // 4)))  # two, and momentum for each
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    for _ in range(2):
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return {"model": model, "optimizer": optimizer}


def tensors(state: dict[str, Any]) -> list[torch.Tensor]:
    found = [*state["model"].state_dict().values()]
    for entry in state["optimizer"].state.values():
        found += [value for value in entry.values() if isinstance(value, torch.Tensor)]
    return [tensor.detach() for tensor in found]


def plain(state: dict[str, Any]) -> dict[str, Any]:
    """As the peers take it."""
    return {name: value.state_dict() for name, value in state.items()}
