"""GPU snapshots: the order of the calls, tried without a GPU; the copies themselves are tried where there is one
(tests/gpu/).
"""

from __future__ import annotations

import pytest
import torch

from orch_workers.training.devices import DeviceCopies
from orch_workers.training.slots import Slot


class Driver:
    """Stands for torch.cuda: copies arrive only when they are waited for, as on a device."""

    def __init__(self, error: int = 0) -> None:
        self.error = error
        self.calls: list[tuple] = []
        self._under_way: list[tuple] = []

    def register(self, address, size_bytes):
        self.calls.append(("register", address, size_bytes))
        return self.error

    def unregister(self, address):
        self.calls.append(("unregister", address))
        return 0

    def stream(self, device):
        self.calls.append(("stream", str(device)))
        return f"stream of {device}"

    def follow(self, stream, device):
        self.calls.append(("follow", stream))

    def copy(self, stream, target, tensor):
        self.calls.append(("copy", stream))
        self._under_way.append((target, tensor))
        return tensor

    def event(self, stream):
        self.calls.append(("event", stream))
        return stream

    def wait(self, event):
        self.calls.append(("wait", event))
        for target, tensor in self._under_way:
            target.copy_(tensor)
        self._under_way.clear()

    def names(self):
        return [call[0] for call in self.calls]


@pytest.fixture
def slot(tmp_path):
    Slot.create(str(tmp_path / "slot"), 1 << 16)
    made = Slot(str(tmp_path / "slot"), writable=True)
    yield made
    made.close()


def address_of(slot):
    return torch.frombuffer(slot.view, dtype=torch.uint8).data_ptr()


def test_a_slot_is_registered_once_and_taken_back_while_it_is_still_mapped(slot):
    driver, said = Driver(), []
    copies = DeviceCopies(torch, said.append, driver)
    for _ in range(3):
        copies.prepare(slot)
    address = address_of(slot)
    assert driver.calls == [("register", address, slot.capacity_bytes)]
    still_mapped = []
    take_back = slot.before_close
    slot.before_close = lambda: (still_mapped.append(bytes(slot.view[:8])), take_back())
    slot.close()
    assert still_mapped == [b"ORCHSLOT"]
    slot.close()
    assert driver.calls[1:] == [("unregister", address)]
    assert said == []


def test_a_refusal_is_said_once_and_nothing_is_taken_back(slot):
    driver, said = Driver(error=2), []
    copies = DeviceCopies(torch, said.append, driver)
    for _ in range(3):
        copies.prepare(slot)
    slot.close()
    assert driver.names() == ["register"]
    assert len(said) == 1
    assert "error 2" in said[0]


def test_copies_follow_training_and_have_arrived_when_it_goes_on(slot):
    driver = Driver()
    copies = DeviceCopies(torch, print, driver)
    tensors = [torch.randn(8), torch.randn(4, 4)]
    data = slot.data()
    copies.begin(data, [(slice(0, 32), tensors[0]), (slice(64, 128), tensors[1])])
    assert not any(data[:128]), "they are only under way"
    copies.wait()
    assert driver.names() == ["stream", "follow", "copy", "copy", "event", "wait"]
    assert bytes(data[:32]) == tensors[0].numpy().tobytes()
    assert bytes(data[64:128]) == tensors[1].numpy().tobytes()
    copies.begin(data, [(slice(0, 32), tensors[0])])
    copies.wait()
    assert driver.names()[6:] == ["follow", "copy", "event", "wait"], "the stream is used again"
    data.release()


def test_what_had_begun_when_a_copy_failed_is_waited_for(slot):
    class Failing(Driver):
        def copy(self, stream, target, tensor):
            if "copy" in self.names():
                raise RuntimeError("out of memory")
            return super().copy(stream, target, tensor)

    driver = Failing()
    copies = DeviceCopies(torch, print, driver)
    with pytest.raises(RuntimeError, match="out of memory"):
        copies.begin(slot.data(), [(slice(0, 4), torch.ones(1)), (slice(64, 68), torch.ones(1))])
    copies.wait()
    assert driver.names()[-2:] == ["event", "wait"]
