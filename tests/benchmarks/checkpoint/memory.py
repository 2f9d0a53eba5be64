"""From a READY slot in shared memory back into the objects of the training, beside one pass of memory copies.

orch loads as a training process does that takes the place of one that died: it maps the slot anew, compares every
tensor with what is there, and copies. The copies beside it are of the same bytes into the same tensors, out of a slot
that is mapped already, with one thread and with as many as orch uses. ORCH_BENCHMARK_STATES names the states if not
all.
"""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tests.benchmarks.checkpoint import states
from tests.benchmarks.checkpoint.quiet import in_turn, settle
from tests.benchmarks.checkpoint.spread import SpreadReport
from tests.benchmarks.checkpoint.training_side import run_of

from orch_workers.training.collection import no_collection
from orch_workers.training.snapshot import Adapters, Stored

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console
    from tests.benchmarks.report import Report

    from orch_workers.training.run import Run

OURS = "orch"


def measure(count: int, *, small: bool, progress: Console) -> list[Report]:
    found: list[Report] = []
    for name in os.environ.get("ORCH_BENCHMARK_STATES", ",".join(states.NAMES)).split(","):
        state = states.make(name, small=small)
        report = SpreadReport(f"restore from memory, {name}", by="seconds_s", ours=OURS)
        with run_of(state) as run:
            run.step()
            run.save()
            sides = _sides(run, state)
            for number in range(count + 1):
                for side, call in in_turn(sides, number):
                    settle()
                    began = time.perf_counter()
                    call()
                    if number:
                        report.add(side, seconds_s=time.perf_counter() - began)
            progress.print(f"memory: {name}")
        report.facts = {"tensors": len(states.tensors(state)), "size_bytes": _size_bytes(state)}
        found.append(report)
    return found


def _sides(run: Run, state: dict[str, Any]) -> dict[str, Callable[[], None]]:
    [path] = Path(os.environ["ORCH_SOCKET"]).parent.glob("slots/slot-*")
    targets = [t.detach().reshape(-1).view(torch.uint8).numpy() for t in states.tensors(state)]
    copy = np.concatenate(targets)
    ends = np.cumsum([target.nbytes for target in targets])
    sources = [copy[end - target.nbytes : end] for end, target in zip(ends, targets, strict=True)]
    half = int(np.searchsorted(ends, copy.nbytes // 2)) + 1

    def passes(part: slice) -> None:
        for target, source in zip(targets[part], sources[part], strict=True):
            np.copyto(target, source)

    def threads() -> None:
        helper = threading.Thread(target=passes, args=(slice(half, None),))
        helper.start()
        passes(slice(0, half))
        helper.join()

    def ours() -> None:
        stored = Stored(str(path), Adapters().codecs())
        try:
            with no_collection():  # as in session.py
                run.load(stored, "of the benchmark")
        finally:
            stored.close()

    return {OURS: ours, "np.copyto 1 thread": lambda: passes(slice(None)), "np.copyto threads": threads}


def _size_bytes(state: dict[str, Any]) -> int:
    return sum(tensor.nbytes for tensor in states.tensors(state))
