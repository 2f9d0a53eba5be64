"""What a process tree uses of its machine: CPU, memory, and the GPUs it may see."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Sampler:
    """One process tree, sampled again and again. Not for several threads."""

    def __init__(
        self,
        visible_gpus: str | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        gpus: Callable[[str | None], list[dict[str, Any]]] | None = None,
    ) -> None:
        """`visible_gpus` is the command's CUDA_VISIBLE_DEVICES; None: all of the machine, empty: none."""
        self._visible = visible_gpus
        self._clock = clock
        self._gpus = gpus or _Gpus().sample
        self._cpu_s: dict[tuple[int, float], float] = {}
        self._at_s: float | None = None

    def sample(self, pids: Iterable[int]) -> dict[str, Any]:
        """`{"cpu_percent", "memory_bytes", "processes", "gpus"}`.

        cpu_percent is since the last sample, 100 for one busy core; None the first time. memory_bytes counts
        what the processes share once, as far as /proc tells it (proc(5), statm). A GPU is `{"index", "name",
        "busy_percent", "memory_used_bytes", "memory_total_bytes"}`.
        """
        cpu_s: dict[tuple[int, float], float] = {}
        own_bytes, shared_bytes = 0, 0
        for pid in pids:
            with contextlib.suppress(psutil.Error, OSError, ValueError):
                process = psutil.Process(pid)
                times = process.cpu_times()
                _, resident, shared = map(int, Path(f"/proc/{pid}/statm").read_text().split()[:3])
                cpu_s[pid, process.create_time()] = times.user + times.system
                own_bytes += (resident - shared) * _PAGE_BYTES
                shared_bytes = max(shared_bytes, shared * _PAGE_BYTES)
        return {
            "cpu_percent": self._cpu_percent(cpu_s),
            "memory_bytes": own_bytes + shared_bytes,
            "processes": len(cpu_s),
            "gpus": [] if self._visible == "" else self._gpus(self._visible),
        }

    def _cpu_percent(self, cpu_s: dict[tuple[int, float], float]) -> float | None:
        """Who is new since the last sample counts whole; who has ended since then, no more."""
        now_s, before_s = self._clock(), self._at_s
        used_s = sum(total - self._cpu_s.get(process, 0.0) for process, total in cpu_s.items())
        self._at_s, self._cpu_s = now_s, cpu_s
        if before_s is None or now_s <= before_s:
            return None
        return round(100 * used_s / (now_s - before_s), 1)


class _Gpus:
    """NVIDIA's through nvidia-ml-py. A machine without a driver has none; that is asked once."""

    def __init__(self) -> None:
        self._library: Any = None
        self._asked = False

    def sample(self, visible: str | None) -> list[dict[str, Any]]:
        library = self._open()
        if library is None:
            return []
        found = []
        for index, handle in self._devices(library, visible):
            # A GPU that has fallen off the bus is left out: its loss is found where training notices it.
            with contextlib.suppress(library.NVMLError):
                memory = library.nvmlDeviceGetMemoryInfo(handle)
                found.append(
                    {
                        "index": index,
                        "name": _text(library.nvmlDeviceGetName(handle)),
                        "busy_percent": self._busy(library, handle),
                        "memory_used_bytes": int(memory.used),
                        "memory_total_bytes": int(memory.total),
                    }
                )
        return found

    def _open(self) -> Any:
        if not self._asked:
            self._asked = True
            with contextlib.suppress(ImportError):
                import pynvml

                with contextlib.suppress(pynvml.NVMLError):
                    pynvml.nvmlInit()
                    self._library = pynvml
        return self._library

    def _devices(self, library: Any, visible: str | None) -> list[tuple[int, Any]]:
        with contextlib.suppress(library.NVMLError):
            handles = [library.nvmlDeviceGetHandleByIndex(i) for i in range(library.nvmlDeviceGetCount())]
            if visible is None:
                return list(enumerate(handles))
            uuids = [_text(library.nvmlDeviceGetUUID(handle)) for handle in handles]
            return [(index, handles[index]) for index in select_gpus(visible, uuids)]
        return []

    def _busy(self, library: Any, handle: Any) -> int | None:
        with contextlib.suppress(library.NVMLError):  # a MIG slice does not tell
            return int(library.nvmlDeviceGetUtilizationRates(handle).gpu)
        return None


def select_gpus(visible: str, uuids: Sequence[str]) -> list[int]:
    """The indices that CUDA_VISIBLE_DEVICES names, as CUDA reads it: up to the first it does not know."""
    found: list[int] = []
    for name in filter(None, (part.strip() for part in visible.split(","))):
        if name.isdigit():
            index = int(name) if int(name) < len(uuids) else None
        else:
            index = next((i for i, uuid in enumerate(uuids) if uuid.startswith(name)), None)
        if index is None:
            break
        found.append(index)
    return found


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
