"""Metrics: kept as they are given, read only when that forces no GPU synchronisation."""

from __future__ import annotations

import math
import time
from typing import Any

from .tensors import torch_module

REPORT_EVERY_NS = 500_000_000
"""Shortest time between two reports: what status shows need not be newer."""


class Metrics:
    """The newest metrics of a run. A value on a device is copied to the host in the background and reported
    when the copy has arrived, at a later step.
    """

    def __init__(self) -> None:
        self._newest: dict[str, Any] = {}
        self._step = 0
        self._epoch = 0
        self._due_ns = 0
        self._is_bad = False
        self._coming: tuple[int, int, dict[str, Any], Any] | None = None

    def put(self, step: int, epoch: int, values: dict[str, Any]) -> None:
        """Raises TypeError for a value that is no number and no one-element array."""
        self._step, self._epoch = step, epoch
        if values:
            self._newest = {name: _kept(name, value) for name, value in values.items()}
            bad = any(_is_bad_loss(name, value) for name, value in self._newest.items())
            if bad and not self._is_bad:
                self._due_ns = 0  # told now: at which step it was first bad decides what is restored
            self._is_bad = bad

    def due(self) -> tuple[int, int, dict[str, Any]] | None:
        """(step, epoch, values) when a report is due and can be had without waiting for a device."""
        if self._coming is not None:
            step, epoch, values, events = self._coming
            if not all(event.query() for event in events):
                return None
            self._coming = None
            return step, epoch, _numbers(values)
        now_ns = time.monotonic_ns()
        if now_ns < self._due_ns or not self._newest:
            return None
        self._due_ns = now_ns + REPORT_EVERY_NS
        if all(_is_on_host(value) for value in self._newest.values()):
            return self._step, self._epoch, _numbers(self._newest)
        self._send_for()
        return None

    def _send_for(self) -> None:
        on_device = [value for value in self._newest.values() if not _is_on_host(value)]
        if any(getattr(value.device, "type", "") != "cuda" for value in on_device):
            return  # no way to ask such a device without waiting: read at the next save
        torch = torch_module()
        copies: dict[str, Any] = {}
        for name, value in self._newest.items():
            copies[name] = value
            if not _is_on_host(value):
                host = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
                copies[name] = host.copy_(value, non_blocking=True)
        events = []
        for device in {value.device for value in on_device}:
            events.append(torch.cuda.Event())
            events[-1].record(torch.cuda.current_stream(device))
        self._coming = (self._step, self._epoch, copies, events)

    def read(self) -> dict[str, Any]:
        """The newest values as numbers. May wait for a device: for when the state is copied anyway."""
        return _numbers(self._newest)


def _kept(name: str, value: Any) -> Any:
    kind = type(value)
    if kind is float or kind is int:
        return value
    detach = getattr(value, "detach", None)
    if callable(detach):
        value = detach()
    size = getattr(value, "numel", None)
    count = size() if callable(size) else getattr(value, "size", None)
    if count is None:  # TensorFlow's tensors and variables tell their shape alone
        count = math.prod(getattr(value, "shape", ()))
    if count != 1 or isinstance(value, (str, bytes)) or not hasattr(value, "__float__"):
        raise TypeError(
            f"run.step({name}=…): a metric is a number or a tensor of one element, not {_shown(value)}"
        )
    return value


def _shown(value: Any) -> str:
    shape = getattr(value, "shape", None)
    return f"{type(value).__name__} of shape {list(shape)}" if shape is not None else type(value).__name__


def _is_bad_loss(name: str, value: Any) -> bool:
    """Of values on the host alone: nothing waits for a device."""
    return name[-4:].lower() == "loss" and _is_on_host(value) and not math.isfinite(value)


def _is_on_host(value: Any) -> bool:
    device = getattr(value, "device", None)
    if isinstance(device, str):  # NumPy's: cpu; TensorFlow's: …/task:0/device:GPU:0
        return "device:" not in device or "CPU" in device
    return device is None or getattr(device, "type", "cpu") == "cpu"


def _numbers(values: dict[str, Any]) -> dict[str, Any]:
    """As JSON can say them: what is not finite becomes ``"nan"``, ``"inf"`` or ``"-inf"``."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if type(value) is int:
            found[name] = value
            continue
        number = float(value)
        found[name] = number if math.isfinite(number) else repr(number)
    return found
