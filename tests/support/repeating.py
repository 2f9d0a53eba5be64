"""The parts of `python -m tests.soak` that try the checkpoint engine alone, without a server of orch."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from support.agents import Agents, Place
from support.fencing import run_round
from support.seaweed import SeaweedFS

if TYPE_CHECKING:
    import random


def fencing(rng: random.Random, count: int) -> dict[str, Any]:
    """`count` rounds of a stopped agent that wakes up after its successor has started; half of them on S3."""
    with tempfile.TemporaryDirectory(prefix="orch-") as name:
        folder = Path(name)
        with Agents(folder) as agents, SeaweedFS(folder / "s3") as seaweed:
            places = {
                "local": Place(str(folder / "storage"), {}, {}),
                "s3": Place(seaweed.url("fencing"), seaweed.options, seaweed.env),
            }
            rounds: list[dict[str, Any]] = []
            for number in range(count):
                kind = ("local", "s3")[number % 2]
                try:
                    found = run_round(agents, places[kind], f"{kind}-{number}", rng, folder)
                except AssertionError as error:
                    raise AssertionError(f"round {number} ({kind}): {error}") from error
                rounds.append({"kind": kind, **found})
    return {
        "rounds": dict(Counter(r["kind"] for r in rounds)),
        "woken": dict(Counter(r["moment"] for r in rounds)),
        "rounds_in_which_the_older_one_had_committed_past_the_fork": sum(
            r["older_committed_past_the_fork"] > 0 for r in rounds
        ),
        "newer_chain_won": len(rounds),
        "older_one_ended": len(rounds),
    }
