"""Snapshots by a plan beside snapshots made from nothing, compared bit for bit."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from orch_workers.training.objects import make_handler
from orch_workers.training.planning import Planner
from orch_workers.training.slots import Slot
from orch_workers.training.snapshot import Adapters, Snapshot, Stored, plan, write


class Kept:
    """The arguments of one run, without a run."""

    def __init__(self, folder, **objects: Any) -> None:
        self.adapters = Adapters()
        self.objects = objects
        self.handlers = [make_handler(name, objects, self.adapters.active(), {}) for name in objects]
        self.planner = Planner(self.handlers, self.adapters)
        self._folder = folder
        self._count = 0

    def save(self) -> dict[str, Any]:
        """What a restart would read of a snapshot that the planner has made now."""
        return self._through(self.planner.snapshot({"~orch": {"n": 1}}, {"step": 1}))

    def fresh(self) -> dict[str, Any]:
        """The same of one that is captured and encoded from nothing."""
        parts = {handler.name: handler.capture() for handler in self.handlers}
        return self._through(plan({**parts, "~orch": {"n": 1}}, self.adapters.codecs(), {"step": 1}))

    def _through(self, snapshot: Snapshot) -> dict[str, Any]:
        path = str(self._folder / f"slot-{self._count}")
        self._count += 1
        Slot.create(path, snapshot.size_bytes)
        slot = Slot(path, writable=True)
        write(snapshot, slot, (1, 1), 1)
        slot.close()
        stored = Stored(path, self.adapters.codecs())
        names = [entry["name"] for entry in stored.meta["entries"]]
        assert len(set(names)) == len(names)
        found = {name: stored.part(name) for name in sorted(stored.meta["tree"])}
        stored.close()
        return found

    def check(self) -> None:
        """The planner's snapshot is that of now; saved twice, so that a plan that was just made is used again."""
        expected = self.fresh()
        for _ in range(2):
            difference = differing(self.save(), expected)
            assert difference is None, difference


def differing(one: Any, other: Any, path: str = "") -> str | None:
    """Where two decoded trees differ in a type, a value, a bit, a layout; None when they do not."""
    if type(one) is not type(other):
        return f"{path}: {type(one)} and {type(other)}"
    if isinstance(one, torch.Tensor):
        if (one.shape, one.dtype, one.stride()) != (other.shape, other.dtype, other.stride()):
            return f"{path}: {one.shape} {one.dtype} {one.stride()}, {other.shape} {other.dtype} {other.stride()}"
        same = torch.equal(raw(one), raw(other))
        return None if same else f"{path}: other values"
    if isinstance(one, dict):
        if list(one) != list(other):
            return f"{path}: {list(one)} and {list(other)}"
        pairs = [(key, one[key], other[key]) for key in one]
        pairs.append(("(attributes)", getattr(one, "_metadata", 0), getattr(other, "_metadata", 0)))
    elif isinstance(one, (list, tuple)):
        if len(one) != len(other):
            return f"{path}: {len(one)} and {len(other)} items"
        pairs = [(index, *items) for index, items in enumerate(zip(one, other, strict=True))]
    else:
        same = one == other or (isinstance(one, float) and math.isnan(one) and math.isnan(other))
        return None if same else f"{path}: {one!r} and {other!r}"
    return next(filter(None, (differing(a, b, f"{path}.{key}") for key, a, b in pairs)), None)


def raw(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def shares(state: dict[str, Any]) -> set[frozenset[str]]:
    """The names of a decoded module's state that share memory."""
    by_address: dict[int, set[str]] = {}
    for name, value in state.items():
        by_address.setdefault(value.data_ptr(), set()).add(name)
    return {frozenset(names) for names in by_address.values() if len(names) > 1}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.norm = nn.BatchNorm1d(4)
        self.second = nn.Linear(4, 4)
        self.third = nn.Linear(4, 4)
        self.register_buffer("mask", torch.ones(4))
        self.register_buffer("scratch", torch.ones(2), persistent=False)
        self.register_buffer("nothing", None)

    def forward(self, x):
        return self.third(self.second(self.norm(self.first(x))))


def step(model, optimizer):
    optimizer.zero_grad()
    (model(torch.randn(5, 3)) ** 2).sum().backward()
    optimizer.step()


def trained(kind=torch.optim.Adam, **options):
    torch.manual_seed(0)
    model = Net()
    optimizer = kind(model.parameters(), lr=0.1, **options)
    step(model, optimizer)
    return model, optimizer
