"""Many seeds, a batch at a time: what the processes of `python -m simulation` do."""

from __future__ import annotations

from simulation.world import World

BATCH = 200


def run_batch(first: int) -> str:
    """The story of the first seed of the batch that fails, or ""."""
    for seed in range(first, first + BATCH):
        try:
            World(seed).run()
        except AssertionError as error:
            return str(error)
    return ""
