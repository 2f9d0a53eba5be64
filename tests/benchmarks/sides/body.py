"""What every side trains, with every phase stamped: the script body is the same, only who keeps it alive differs.

Stamps are JSON lines in the file $EVENTS, each with the wall clock, the process and the name of what was just
done: ``entered`` (the script's first line), ``imported``, ``built``, ``loaded`` (with the step gone on from),
``step`` and ``saved``.
"""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

SAVE_EVERY_STEPS = 10
PRODUCTS = 50
"""Work of every step beside the model's: so many products of WEIGHTY with itself, about a millisecond each."""
BATCH = 4


def stamp(event: str, **more: Any) -> None:
    line = json.dumps({"t": time.time(), "event": event, "pid": os.getpid(), **more}) + "\n"
    with open(os.environ["EVENTS"], "a") as file:  # noqa: PTH123 - nothing is imported before "entered"
        file.write(line)


def build() -> tuple[torch.nn.Module, torch.Tensor]:
    """A layer of WIDTH x WIDTH numbers (5120: 100 MiB, 19365: 1.5 GB) and a batch for it."""
    import torch

    torch.manual_seed(0)
    torch.set_num_threads(1)
    width = int(os.environ["WIDTH"])
    # Random numbers for a large layer would take longer than everything that is measured.
    model = torch.nn.utils.skip_init(torch.nn.Linear, width, width, bias=False)
    torch.nn.init.constant_(model.weight, 1 / width)
    batch = torch.randn(BATCH, width)
    stamp("built")
    return model, batch


def train(model: torch.nn.Module, batch: torch.Tensor, done: int, after_step: Callable[[int], None]) -> None:
    """Steps until killed. `after_step` is called with the count of completed steps, and saves every tenth."""
    import torch

    weighty = torch.ones(448, 448)
    while True:
        with torch.no_grad():
            model(batch)
            model.weight[done % len(model.weight)] += 1.0
            for _ in range(PRODUCTS):
                torch.mm(weighty, weighty)
        done += 1
        after_step(done)
        stamp("step", step=done)
        if done % SAVE_EVERY_STEPS == 0:
            stamp("saved", step=done)
