"""From a GPU to a slot: the slot's memory made known to CUDA, copies on a stream of their own.

The slot is registered once (cudaHostRegister), so that the device writes into it directly; where that is refused
the copies go through the driver's own buffer, slower and as right. Training goes on only when the last byte has
arrived: what is copied would change under a copy that is still under way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Callable, Sequence

from .tensors import torch_module, view_of

if TYPE_CHECKING:
    from .slots import Slot

REGISTER_PORTABLE = 1
"""cudaHostRegisterPortable: for every CUDA context of the process."""


class Cuda:
    """The calls into torch.cuda that are needed; all of them, so that the order they come in can be tried without a
    GPU.
    """

    def __init__(self, torch: Any) -> None:
        self._torch = torch

    def register(self, address: int, size_bytes: int) -> int:
        """0, or CUDA's error number."""
        cudart = self._torch.cuda.cudart()
        return int(cudart.cudaHostRegister(address, size_bytes, REGISTER_PORTABLE))

    def unregister(self, address: int) -> int:
        return int(self._torch.cuda.cudart().cudaHostUnregister(address))

    def stream(self, device: Any) -> Any:
        return self._torch.cuda.Stream(device=device)

    def follow(self, stream: Any, device: Any) -> None:
        """What `stream` does from here on comes after all that training has asked the device for so far."""
        stream.wait_stream(self._torch.cuda.current_stream(device))

    def copy(self, stream: Any, target: Any, tensor: Any) -> Any:
        """Starts a copy; what it returns must live until `wait`."""
        with self._torch.cuda.stream(stream):
            source = tensor.detach().resolve_conj().resolve_neg().contiguous()
            target.copy_(source, non_blocking=True)
        return source

    def event(self, stream: Any) -> Any:
        return stream.record_event()

    def wait(self, event: Any) -> None:
        event.synchronize()


class DeviceCopies:
    """Not for several threads; `begin` and `wait` come in pairs."""

    def __init__(self, torch: Any, warn: Callable[[str], None], driver: Any = None) -> None:
        self._torch = torch
        self._driver = driver if driver is not None else Cuda(torch)
        self._warn = warn
        self._refused = False
        self._streams: dict[Any, Any] = {}
        self._events: list[Any] = []
        self._alive: list[Any] = []

    def prepare(self, slot: Slot) -> None:
        """Registers the slot, once for as long as it is mapped. A refusal is said once and then accepted."""
        if self._refused or slot.before_close is not None:
            return
        address = int(self._torch.frombuffer(slot.view, dtype=self._torch.uint8).data_ptr())
        error = self._driver.register(address, slot.capacity_bytes)
        if error:
            self._refused = True
            self._warn(
                f"snapshots from the GPU go through pageable memory, which is slower: CUDA did not take the "
                f"{slot.capacity_bytes} bytes of a slot (cudaHostRegister: error {error}); raise the limit on locked "
                "memory (ulimit -l)"
            )
            return
        driver = self._driver

        def unregister() -> None:
            driver.unregister(address)

        slot.before_close = unregister

    def begin(self, data: memoryview, items: Sequence[tuple[slice, Any]]) -> None:
        """Starts to copy every (where in `data`, tensor), each device on a stream of its own."""
        used: dict[Any, Any] = {}
        for _, tensor in items:
            device = tensor.device
            if device not in used:
                if device not in self._streams:
                    self._streams[device] = self._driver.stream(device)
                used[device] = self._streams[device]
                self._driver.follow(used[device], device)
        try:
            for where, tensor in items:
                target = view_of(self._torch, data[where], tensor.dtype, tensor.shape)
                self._alive.append((target, self._driver.copy(used[tensor.device], target, tensor)))
        finally:
            self._events += [self._driver.event(stream) for stream in used.values()]

    def wait(self) -> None:
        """Returns when all that was begun has arrived."""
        events, self._events = self._events, []
        try:
            for event in events:
                self._driver.wait(event)
        finally:
            self._alive.clear()


def device_copies(known: DeviceCopies | None, slot: Slot, warn: Callable[[str], None]) -> DeviceCopies | None:
    """For a process that uses CUDA: the slot is made known to it before anything is copied. `known`: as made before."""
    torch = torch_module()
    if torch is None or not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return None
    made = DeviceCopies(torch, warn) if known is None else known
    made.prepare(slot)
    return made
