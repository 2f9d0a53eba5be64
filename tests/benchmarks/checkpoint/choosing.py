"""Which states and storages a benchmark measures: all, or those that ORCH_BENCHMARK_STATES and _STORAGE name."""

from __future__ import annotations

import itertools
import os

from tests.benchmarks.checkpoint import states

STATE_OF_S3 = "gpt2"
"""Many small tensors say nothing of a network that one large state does not."""


def chosen(storages: tuple[str, ...]) -> list[tuple[str, str]]:
    """(state, storage) of each measurement."""
    names = os.environ.get("ORCH_BENCHMARK_STATES", ",".join(states.NAMES)).split(",")
    kinds = os.environ.get("ORCH_BENCHMARK_STORAGE", ",".join(storages)).split(",")
    return [pair for pair in itertools.product(names, kinds) if pair[1] != "s3" or pair[0] == STATE_OF_S3]
