"""`python -m tests.gpu.snapshot`: a model on a GPU is saved through a registered slot and comes back bit for bit.

Ends with 2 and the reason where torch sees no GPU.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import torch

from orch_workers.training.devices import DeviceCopies
from orch_workers.training.objects import make_handler
from orch_workers.training.planning import Planner
from orch_workers.training.slots import Slot
from orch_workers.training.snapshot import Adapters, Stored, write

ROUNDS = 5
WIDTH = 4096


def main() -> int:
    if not torch.cuda.is_available():
        print("nothing was tried: torch.cuda.is_available() is False on this machine")
        return 2
    model = torch.nn.Sequential(*(torch.nn.Linear(WIDTH, WIDTH) for _ in range(4))).cuda()
    optimizer = torch.optim.Adam(model.parameters())
    state = {"model": model, "optimizer": optimizer}
    adapters = Adapters()
    handlers = [make_handler(name, state, adapters.active(), {}) for name in state]
    planner, refusals = Planner(handlers, adapters), list[str]()
    copies = DeviceCopies(torch, refusals.append)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        path = str(Path(folder) / "slot")
        slot = None
        for number in range(ROUNDS):
            model(torch.randn(64, WIDTH, device="cuda")).square().sum().backward()
            optimizer.step()
            began = time.perf_counter()  # what training has asked for is waited for too: it is part of a save
            snapshot = planner.snapshot({}, {"step": number})
            if slot is None or slot.capacity_bytes < snapshot.size_bytes:
                Slot.create(path, snapshot.size_bytes)
                slot = Slot(path, writable=True)
                copies.prepare(slot)
            write(snapshot, slot, (1, 1), number, copies)
            seconds_s = time.perf_counter() - began
            expected = {name: value.cpu() for name, value in model.state_dict().items()}
            moments = [value.cpu() for entry in optimizer.state.values() for value in entry.values()]
            stored = Stored(path, adapters.codecs())
            found = stored.part("model")
            entries = stored.part("optimizer", "state").values()
            assert all(found[name].equal(value) for name, value in expected.items()), "model differs"
            restored = [value for entry in entries for value in entry.values()]
            assert all(one.equal(other) for one, other in zip(restored, moments, strict=True)), (
                "optimizer differs"
            )
            stored.close()
            print(f"round {number}: {snapshot.data_bytes / 1e9:.2f} GB in {seconds_s * 1e3:.1f} ms, equal")
        assert slot is not None
        print("registered" if slot.before_close is not None else f"not registered: {refusals}")
        slot.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
