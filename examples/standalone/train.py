"""A training by itself, without orch around it: checkpoints in any storage, Ctrl-C at any time, go on where it was.

    python train.py                                        # checkpoints/standalone beside it
    python train.py --checkpoints s3://bucket/runs/demo    # needs s3fs; credentials from the environment

See docs/checkpointer.md.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from pathlib import Path

import torch
from torch import nn

from orch_workers.checkpoint import Checkpointer

EVERY_STEPS = 25


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--checkpoints", default=str(Path(__file__).parent / "checkpoints" / "standalone"))
    parser.add_argument(
        "--pause", type=float, default=0.0, help="seconds between steps, to have time for Ctrl-C"
    )
    options = parser.parse_args()

    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    target = torch.linspace(-1, 1, 8)
    losses: list[float] = []
    state = {"model": model, "optimizer": optimizer, "losses": losses}

    asked_to_stop: list[int] = []
    signal.signal(
        signal.SIGINT, lambda number, _frame: asked_to_stop.append(number)
    )  # the step is finished first

    with Checkpointer(options.checkpoints, keep=3, background=True) as checkpoints:
        found = checkpoints.restore(state)
        first = 1
        if found is not None:
            first = found.step + 1
            print(f"went on from step {found.step}, loss {found.metrics['loss']:.6f}")
        for step in range(first, options.steps + 1):
            x = torch.randn(32, 8)
            loss = (model(x).squeeze(1) - (x * target).sum(1).sin()).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            stopping = bool(asked_to_stop)  # looked at once: Ctrl-C may come between any two lines
            if step % EVERY_STEPS == 0 or step == options.steps or stopping:
                checkpoints.save(step, state, metrics={"loss": losses[-1]})
            if step % 10 == 0:
                print(f"step {step}: loss {losses[-1]:.6f}")
            if stopping:
                checkpoints.wait()
                print(f"interrupted; saved step {step}, the same command goes on from there")
                sys.exit(130)
            time.sleep(options.pause)
    print(f"final loss {losses[-1]:.12f} after {len(losses)} steps")


if __name__ == "__main__":
    main()
