"""The states as READY slots in shared memory, without a training process that fills them; and what a side costs."""

from __future__ import annotations

import contextlib
import os
import resource
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
from tests.benchmarks.checkpoint import states

from orch_workers.training.slots import HEADER_BYTES, Slot, aligned

if TYPE_CHECKING:
    from collections.abc import Iterator

META_BYTES = 32 << 20
RANDOM_BYTES = 8 << 20
SAMPLE_S = 0.005
GENERATION = (1, 1)
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def shapes(name: str, *, small: bool) -> dict[str, tuple[int, ...]]:
    """The tensors of a state: parameters and Adam's two for each, or very many of one size."""
    if name != "gpt2":
        count = states.MANY // (states.SMALL_SHARE if small else 1)
        size = int(name.removeprefix("many-").removesuffix("KiB")) * states.KIB // 4
        return {f"state.{number}.tensor": (size,) for number in range(count)}
    with torch.device("meta"):
        model = states.Gpt2(96, 5_000) if small else states.Gpt2(768, 50_257)
    parts = ("model", "optimizer.exp_avg", "optimizer.exp_avg_sq")
    return {f"{part}.{key}": tuple(value.shape) for part in parts for key, value in model.named_parameters()}


class SlotFile:
    """A slot of random bytes. `snapshot(step)` makes it the snapshot of that step; `view` is its data."""

    def __init__(self, path: Path, tensors: dict[str, tuple[int, ...]]) -> None:
        self.path = path
        self.entries, end = [], 0
        for name, shape in tensors.items():
            offset = aligned(end)
            end = offset + 4 * int(np.prod(shape))
            entry = {"name": name, "dtype": "F32", "shape": list(shape), "offset": offset}
            self.entries.append(entry | {"size_bytes": end - offset})
        self.data_bytes = end
        Slot.create(str(path), aligned(end) + META_BYTES)
        self._writer = Slot(str(path), writable=True)
        noise = np.random.default_rng(1).integers(0, 256, size=RANDOM_BYTES, dtype=np.uint8)
        data = np.frombuffer(self._writer.data(), dtype=np.uint8)[:end]
        for at in range(0, end, RANDOM_BYTES):
            data[at : at + RANDOM_BYTES] = noise[: len(data[at : at + RANDOM_BYTES])]
        self.slot = Slot(str(path))
        self.view = self.slot.view[HEADER_BYTES : HEADER_BYTES + end]
        np.frombuffer(self.view, dtype=np.uint8)[::_PAGE_BYTES].sum()  # mapped here too

    def snapshot(self, step: int) -> Slot:
        self._writer.begin(GENERATION, step)
        meta = {"tree": {}, "entries": self.entries, "step": step, "epoch": 1, "metrics": {}, "kind": "state"}
        self._writer.finish(GENERATION, step, self.data_bytes, {**meta, "frameworks": {}})
        return self.slot


@contextlib.contextmanager
def slot_file(name: str, *, small: bool) -> Iterator[SlotFile]:
    with tempfile.TemporaryDirectory(prefix="orch-benchmark-", dir="/dev/shm") as folder:
        yield SlotFile(Path(folder, "slot"), shapes(name, small=small))


class Cost:
    """Seconds, GB/s, processor seconds per GB, and the memory of its own that a side took at its peak."""

    def __init__(self, size_bytes: int) -> None:
        self._size_bytes = size_bytes
        self._stop = threading.Event()
        self._peak = self._first = _own_memory_bytes()
        self._sampler = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Self:
        self._sampler.start()
        self._cpu_s = _cpu_s()
        self._began = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds_s = time.perf_counter() - self._began
        self._cpu_s = _cpu_s() - self._cpu_s
        self._stop.set()
        self._sampler.join()

    def values(self) -> dict[str, float]:
        gigabytes = self._size_bytes / 1e9
        return {
            "seconds_s": self.seconds_s,
            "GB/s": gigabytes / self.seconds_s,
            "CPU s/GB": self._cpu_s / gigabytes,
            "own memory MiB": max(0, self._peak - self._first) / (1 << 20),
        }

    def _sample(self) -> None:
        while not self._stop.wait(SAMPLE_S):
            self._peak = max(self._peak, _own_memory_bytes())


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _own_memory_bytes() -> int:
    """Resident and not shared: the slots count for nothing here."""
    _, resident, shared, *_ = Path("/proc/self/statm").read_text().split()
    return (int(resident) - int(shared)) * _PAGE_BYTES
