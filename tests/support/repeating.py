"""The parts of `python -m tests.soak` that try the checkpoint engine alone, without a server of orch."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from support import crash_cycle
from support.agents import Agents, Place
from support.crash_cycle import (
    Check,
    facts_at,
    killed,
    power_loss_after_take_over,
    record,
    two_saves_and_a_retention,
    whole_life,
)
from support.crashing import read_tree
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


def crashes(rng: random.Random, count: int) -> dict[str, Any]:
    """Every boundary of a whole life of checkpoints: a kill, `count` power losses, and power losses after the next
    agent has taken over what a kill left; and a process really killed at each boundary of a shorter one.
    """
    with (
        tempfile.TemporaryDirectory(prefix="orch-crash-", dir="/dev/shm") as name,
        pytest.MonkeyPatch.context() as patch,
    ):
        crash_cycle.small_limits(patch)
        folder = Path(name)
        life = record(folder, lambda life, recorder: whole_life(life, recorder.spoil))
        life.assert_complete()
        looked_at: dict[str, int] = {}
        kills, losses = Check(folder / "kills"), Check(folder / "losses")
        for at, model in life.models():
            facts = facts_at(life.marks, at)
            kills(model.visible(), facts, f"killed before operation {at}")
            for tree in model.after_power_loss(rng, count):
                losses(tree, facts, f"power lost before operation {at}")
        looked_at |= {"kills": kills.looked_at, "power losses": losses.looked_at}
        shutil.rmtree(folder / "recorded")
        first = record(folder, two_saves_and_a_retention)
        after = Check(folder / "after")
        for at in range(len(first.ops) + 1):
            power_loss_after_take_over(first, at, folder, rng, after, count)
        looked_at["kill, take-over, power loss"] = after.looked_at
        real = Check(folder / "real")
        for at in range(len(first.ops)):
            shutil.rmtree(folder / "recorded")
            facts = killed(folder, two_saves_and_a_retention, at)
            if facts is not None:
                real(read_tree(folder / "recorded"), facts, f"SIGKILL before operation {at}")
        looked_at["processes killed, different states"] = real.looked_at
    return {"operations": len(life.ops), "states_restored_from": looked_at}


def faults(rng: random.Random, count: int) -> dict[str, Any]:
    """Every fault of S3 at 1, 10, 30 and 50 percent of the calls, `count` times."""
    code = "import pytest, sys; sys.exit(pytest.main(sys.argv[1:]))"
    runs = 0
    for share in ("0.01", "0.1", "0.3", "0.5"):
        for _ in range(count):
            found = subprocess.run(
                [sys.executable, "-c", code, "-q", "-p", "no:cacheprovider", "tests/integration/faults"],
                env={**os.environ, "ORCH_TEST_SEED": str(rng.getrandbits(31)), "ORCH_FAULT_SHARE": share},
                capture_output=True,
                text=True,
                check=False,
            )
            assert found.returncode == 0, found.stdout[-4000:]
            runs += 1
    return {"runs_of_all_faults": runs, "shares": [0.01, 0.1, 0.3, 0.5]}
