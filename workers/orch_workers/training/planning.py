"""The plan of a snapshot, made once and used again while it still holds.

What is big and seldom moves (the tensors of modules and optimizers) is fixed: its places in the slot, its
description and that description's checksum are kept, and a save only looks whether all of it is where it was
(watching.py). Everything else, and every value that is no tensor, is captured and encoded at each save.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Sequence

from .arrays import numpy_module
from .copying import THREADED_BYTES_MIN, copy_pairs
from .slots import FixedPart
from .snapshot import Snapshot, describe, place
from .tensors import bytes_of, is_plain, torch_module, view_of
from .tree import Encoder
from .watching import HOLE, Layouts, Watch

if TYPE_CHECKING:
    from .devices import DeviceCopies
    from .objects import StateHandler
    from .snapshot import Adapters
    from .tree import Codec, Json, Leaf

VIEWED_ANEW_BYTES_MIN = 1 << 20
"""The arrays over larger tensors are made anew at each save: a kept one would keep memory alive that a script
has let go of (`load_state_dict`, `.to()`), and making it costs little beside the copy.
"""
KEPT_BYTES_MAX = 2 << 30
"""Of the smaller ones, whose arrays are kept, together. Beyond it they too are made anew."""


class _FixedEncoder(Encoder):
    """`sources`: for each entry, which of the tensors in the order they were met it is."""

    def __init__(self, codecs: Sequence[Codec]) -> None:
        super().__init__(codecs)
        self.sources: list[int] = []
        self._met = 0

    def encode(self, value: Any, path: str, depth: int = 0) -> Json:
        return None if value is HOLE else super().encode(value, path, depth)

    def _entry(self, path: str, leaf: Leaf) -> str:
        name = super()._entry(path, leaf)
        if len(self.entries) > len(self.sources):  # else it shares memory with an earlier one
            self.sources.append(self._met)
        self._met += 1
        return name


class Plan:
    """Where the tensors of `watches` go. Raises UnsupportedStateError for what cannot be kept."""

    def __init__(self, torch: Any, watches: list[Watch], codecs: Sequence[Codec]) -> None:
        self._torch = torch
        self.watches = watches
        live = _live(watches)
        assert live is not None, "watches were just made"
        self._layouts = Layouts(torch, live)
        self.encoder = _FixedEncoder(codecs)
        tree = {watch.name: self.encoder.encode(watch.fixed(), watch.name) for watch in watches}
        placed, self.data_bytes = place(self.encoder.entries, 0)
        self.description = FixedPart.of({"tree": tree, "entries": describe(placed)})
        self._place(placed, live)
        self.encoder.entries.clear()  # they hold the tensors' memory; names and identities are still known

    def _place(self, placed: list[Any], live: list[Any]) -> None:
        """How each entry is copied, by what it is: see `copy`."""
        self._small: list[tuple[slice, memoryview]] = []
        self._kept: list[tuple[slice, Any]] = []
        self._viewed: list[tuple[slice, int]] = []
        self._strided: list[tuple[slice, int]] = []
        self._on_device: list[tuple[slice, int]] = []
        kept_bytes = 0
        for (entry, at), index in zip(placed, self.encoder.sources):
            size_bytes, tensor = entry.leaf.size_bytes, live[index]
            where = slice(at, at + size_bytes)
            if not size_bytes:
                continue
            if tensor.device.type != "cpu":
                self._on_device.append((where, index))
            elif not is_plain(tensor) or numpy_module() is None:
                self._strided.append((where, index))
            elif size_bytes >= VIEWED_ANEW_BYTES_MIN or kept_bytes + size_bytes > KEPT_BYTES_MAX:
                self._viewed.append((where, index))
            else:
                kept_bytes += size_bytes
                view = bytes_of(self._torch, tensor)
                if size_bytes >= THREADED_BYTES_MIN:
                    self._kept.append((where, view))
                else:
                    self._small.append((where, memoryview(view)))

    def live(self) -> list[Any] | None:
        """The tensors as they are now; None when the plan does not hold any more."""
        live = _live(self.watches)
        return live if live is not None and self._layouts.hold(live) else None

    def copy(self, live: list[Any], data: memoryview, devices: DeviceCopies | None) -> None:
        """All fixed entries, in one pass; `live` is what the plan was last seen to hold for."""
        torch = self._torch
        try:
            if self._on_device:
                assert devices is not None
                devices.begin(data, [(where, live[index]) for where, index in self._on_device])
            if self._kept or self._viewed:
                target = numpy_module().frombuffer(data, "u1")
                pairs = [(target[where], view) for where, view in self._kept]
                pairs += [(target[where], bytes_of(torch, live[index])) for where, index in self._viewed]
                copy_pairs(pairs)
            for where, view in self._small:
                data[where] = view
            for where, index in self._strided:
                tensor = live[index]
                view_of(torch, data[where], tensor.dtype, tensor.shape).copy_(tensor.detach())
        finally:
            if self._on_device:
                assert devices is not None
                devices.wait()


def _live(watches: list[Watch]) -> list[Any] | None:
    found: list[Any] = []
    for watch in watches:
        tensors = watch.tensors()
        if tensors is None:
            return None
        found += tensors
    return found


class Planner:
    """Makes the snapshots of one run."""

    def __init__(self, handlers: Sequence[StateHandler], adapters: Adapters) -> None:
        self._handlers = handlers
        self._adapters = adapters
        self._plan: Plan | None = None
        self.plans_made = 0

    def snapshot(self, own: dict[str, Any], meta: dict[str, Any]) -> Snapshot:
        """The state as it is now, ready to be copied. `own`: what is in the tree beside the arguments; `meta`:
        what stands beside the tree. Raises UnsupportedStateError for what cannot be kept.
        """
        plan, live = self._current()
        codecs = self._adapters.codecs()
        encoder = Encoder(codecs, None if plan is None else plan.encoder)
        fixed_names = set() if plan is None else {watch.name for watch in plan.watches}
        fill: list[list[Any]] = []
        for watch in plan.watches if plan is not None else ():
            for path, value in watch.holes():
                where = [watch.name, *path]
                fill.append([where, encoder.encode(value, ".".join(map(str, where)))])
            watch.forget()
        parts = {h.name: h.capture() for h in self._handlers if h.name not in fixed_names}
        tree = {name: encoder.encode(value, name) for name, value in {**parts, **own}.items()}
        placed, end = place(encoder.entries, 0 if plan is None else plan.data_bytes)
        whole = {"tree": tree, "entries": describe(placed), **meta}
        if plan is None:
            return Snapshot.of(placed, whole, end)
        copy = lambda data, devices: plan.copy(live, data, devices)  # noqa: E731 - holds what the guard saw
        return Snapshot.of(placed, {**whole, "fill": fill}, end, plan.description, copy)

    def _current(self) -> tuple[Plan | None, list[Any]]:
        live = self._look()
        if live is not None:
            return self._plan, live
        self._plan = None  # what it keeps is let go before there is more
        watches = self._adapters.watches(self._handlers)
        if not watches:
            return None, []
        self.plans_made += 1
        self._plan = Plan(torch_module(), watches, self._adapters.codecs())
        live = self._look()
        assert live is not None, "a plan holds for the state that it was made from"
        return self._plan, live

    def _look(self) -> list[Any] | None:
        if self._plan is None:
            return None
        try:
            return self._plan.live()
        except Exception:  # what cannot be looked at as it was is not what it was
            return None
