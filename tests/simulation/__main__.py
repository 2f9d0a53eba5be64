"""`python -m simulation COUNT [FIRST]`: so many seeds on all cores; prints the story of the first that fails."""

from __future__ import annotations

import multiprocessing
import os
import sys

from simulation.many import BATCH, run_batch

TOLD_EVERY = 5_000


def main() -> int:
    count = int(sys.argv[1])
    first = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    done = 0
    with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool:
        for story in pool.imap_unordered(run_batch, range(first, first + count, BATCH)):
            if story:
                print(story)
                print("\nreplay it: ORCH_SIMULATION_SEED=<the seed> pytest tests/simulation -k holds")
                return 1
            done += BATCH
            if done % TOLD_EVERY == 0:
                print(f"{done} of {count} seeds", flush=True)
    print(f"{done} seeds, nothing found")
    return 0


if __name__ == "__main__":
    sys.exit(main())
