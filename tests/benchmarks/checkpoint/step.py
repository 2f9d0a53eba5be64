"""What `run.step()` costs when nothing is due, beside a call of an empty function."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tests.benchmarks.checkpoint.spread import SpreadReport
from tests.benchmarks.checkpoint.training_side import run_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console
    from tests.benchmarks.report import Report

CALLS = 100_000


def measure(count: int, *, small: bool, progress: Console) -> list[Report]:
    found = SpreadReport("run.step with nothing due, microseconds a call", by="call_us", ours="run.step()")
    calls = CALLS // 100 if small else CALLS

    def empty(**_: float) -> None: ...

    with run_of({"seen": 0}) as run:
        batches = run.batches(range(1 << 60))
        next(batches)
        sides: dict[str, Callable[[], None]] = {
            "run.step()": run.step,
            "run.step(loss=…)": lambda: run.step(loss=0.5),
            "empty call": lambda: empty(loss=0.5),
        }
        for number in range(count):
            progress.print(f"step: {number + 1} of {count}")
            for name, call in sides.items():
                began = time.perf_counter()
                for _ in range(calls):
                    call()
                found.add(name, call_us=(time.perf_counter() - began) / calls * 1e6)
        batches.close()
    found.facts = {
        "calls": calls,
        "limit_us": 5,
    }
    return [found]
