"""`python -m tests.soak`: the repetitions behind docs/evidence.md. Prints JSON; exits 1 when anything did not hold.

Every part runs on a server of its own, or on the checkpoint engine alone, and says its seed; `--seed` repeats one. A
length of time (`30m`) instead of a part: jobs come and go for so long, and something is killed every few seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import secrets
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # as pytest's pythonpath has it

from orch.model.units import parse_duration_s
from support import (
    estimators,
    fuzzing_jobs,
    gang_jobs,
    interrupting,
    killed_tensorflow,
    repeating,
    repeating_nodes,
    rows,
    soak_control,
    soak_mixed,
    some,
    tf_workers,
)
from support.leftovers import assert_nothing_left
from support.nodes import Pool
from support.recovery import STEPS, Victim, assert_chain_kept, assert_recovered, placement_groups, starts
from support.server import Server, leave_on_sigterm, own_server, wait_for

LONG = ("--set=env.STEPS=9000",)
"""The job of the kills: long enough to be killed twenty times."""
STEPS_BETWEEN_KILLS = (60, 300)


def kills(server: Server, rng: random.Random, count: int) -> dict[str, Any]:
    """`count` SIGKILLs over one job, training process and agent mixed, against an undisturbed run."""
    calm = Victim(server, *LONG)
    calm.finish()
    victim = Victim(server, *LONG)
    who: list[str] = []
    for _ in range(count):
        victim.wait_training()
        victim.wait_step((victim.detail()["step"] or 0) + rng.randrange(*STEPS_BETWEEN_KILLS))
        choice = rng.choice(["training process", "agent"])
        killed = victim.kill_training() if choice == "training process" else victim.kill_agent()
        assert killed, "it was over before it could be killed"
        who.append(choice)
    detail = victim.finish()
    assert_recovered(detail, kills=count)
    assert victim.final_bytes() == calm.final_bytes(), "the final bytes differ"
    assert_chain_kept(victim, steps=9000)
    victim.assert_nothing_left()
    recoveries = starts(detail)[1:]
    return {
        "kills": {name: who.count(name) for name in sorted(set(who))},
        "equal_bytes": True,
        "restored_from": {
            source: sum(r["restored_from"] == source for r in recoveries) for source in ("memory", "storage")
        },
        "lost_steps": [r["lost_steps"] for r in recoveries],
        "recovery_s": [r["recovery_s"] for r in recoveries],
        "goodput": detail["goodput"],
    }


def cancels(server: Server, rng: random.Random, count: int) -> dict[str, Any]:
    """A cancel at a random moment, `count` times; afterwards nothing is left."""
    states = []
    for number in range(count):
        victim = Victim(server)
        if rng.random() < 0.5:
            victim.wait_event("ProcessStarted")
        moment_s = time.monotonic() + rng.random() * 4
        wait_for("the random moment", lambda at=moment_s: time.monotonic() >= at)
        states.append(victim.detail()["state"])
        server.cli("cancel", victim.id, *(["--now"] if number % 2 else []))
        server.cli("wait", victim.id, check=3)
        victim.assert_nothing_left()
    return {"cancels": count, "states_when_cancelled": {s: states.count(s) for s in sorted(set(states))}}


def controller(server: Server, rng: random.Random, count: int) -> dict[str, Any]:
    """The controller SIGKILLed at random moments of one job each: training goes on, nothing is run twice."""
    pauses = []
    calm = Victim(server)
    calm.finish()
    for _ in range(count):
        victim = Victim(server)
        victim.wait_training()
        victim.wait_step(rng.randrange(20, STEPS * 2 // 3))
        assert victim.kill_controller()
        detail = victim.finish()
        assert len(starts(detail)) == 1, "training was disturbed"
        assert len(victim.events("ProcessStarted")) == 1, "something ran twice"
        assert victim.final_bytes() == calm.final_bytes(), "the final bytes differ"
        pauses.append(victim.longest_pause_s())
        victim.assert_nothing_left()
    assert max(pauses) < 1.0, f"a step was delayed: {pauses}"
    return {
        "kills": count,
        "longest_pause_s": max(pauses),
        "longest_pause_undisturbed_s": calm.longest_pause_s(),
    }


def gangs(server: Server, rng: random.Random, count: int) -> dict[str, Any]:
    """Every part of a gang of two is killed, or told to leave, by turns."""
    calm = gang_jobs.GangVictim(server)
    calm.finish()
    undisturbed, pool, told = calm.final_bytes(), Pool(server), []
    try:
        for number in range(count):
            name, row = list(gang_jobs.ROWS.items())[number % len(gang_jobs.ROWS)]
            told.append({"row": name, **row(server, pool, undisturbed, rng.randrange(2))})
    finally:
        pool.close()
    return {"kills": count, "told": told}


PARTS: dict[str, tuple[Callable[[Server, random.Random, int], dict[str, Any]], int]] = {
    "kills": (kills, 20),
    "cancels": (cancels, 20),
    "controller": (controller, 10),
    "nodes": (repeating_nodes.nodes, 10),
    "gangs": (gangs, 20),
    "transitions": (soak_control.transitions, 1),
    "rows": (rows.rows, 10),
    "interrupts": (interrupting.interrupts, 200),
}


WITHOUT_SERVER: dict[str, tuple[Callable[[random.Random, int], dict[str, Any]], int]] = {
    "fencing": (repeating.fencing, 1000),
    "crashes": (repeating.crashes, 16),
    "faults": (repeating.faults, 1),
    "postgresql": (soak_control.postgresql, 3),
    "fuzz": (lambda rng, count: fuzzing_jobs.fuzz(rng.getrandbits(31), count), 100_000),
    "recover": (soak_control.recover, 10),
    "head": (soak_control.head, 10),
    "clock": (soak_control.clock, 20),
    "tensorflow": (killed_tensorflow.kills, 20),
    "estimators": (estimators.estimators, 2),
    "tensorflow-workers": (tf_workers.workers, 2),
}


def run(part: str, seed: int, count: int | None) -> dict[str, Any]:
    if part in WITHOUT_SERVER:
        alone, usual = WITHOUT_SERVER[part]
        began = time.monotonic()
        found = alone(random.Random(seed), count or usual)
        return {"part": part, "seed": seed, "took_s": round(time.monotonic() - began, 1), **found}
    if part in PARTS:
        act, usual = PARTS[part]
    else:
        act, count, usual = soak_mixed.mixed, _seconds(part), 0
    began = time.monotonic()
    with own_server() as server:
        found = act(server, random.Random(seed), count or usual)
        jobs = [job["id"] for job in server.client().jobs()]
        assert not placement_groups(server, *jobs)
        server.stop()
        assert_nothing_left(server.home, jobs)
    return {"part": part, "seed": seed, "took_s": round(time.monotonic() - began, 1), **found}


def _seconds(part: str) -> int:
    return round(parse_duration_s(part))


def _part(text: str) -> str:
    if text not in PARTS and text not in WITHOUT_SERVER:
        try:
            _seconds(text)
        except ValueError:
            known = ", ".join([*PARTS, *WITHOUT_SERVER])
            raise argparse.ArgumentTypeError(
                f"{text!r} is neither a part ({known}) nor a length of time"
            ) from None
    return text


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument(
        "parts", nargs="*", type=_part, metavar="PART|TIME", help=", ".join([*PARTS, *WITHOUT_SERVER])
    )
    parser.add_argument("--seed", type=int, default=secrets.randbelow(2**31))
    parser.add_argument("--count", type=int, help="instead of each part's own number of repetitions")
    parser.add_argument("--only", metavar="NAME,…", default="", help="of rows and transitions: only these")
    given = parser.parse_args()
    leave_on_sigterm()
    os.environ[some.VARIABLE] = given.only
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    good = True
    for part in given.parts or [*PARTS, *WITHOUT_SERVER]:
        print(f"{part}: seed {given.seed}, commit {commit.stdout.strip()}", file=sys.stderr, flush=True)
        try:
            print(json.dumps(run(part, given.seed, given.count)), flush=True)
        except AssertionError as error:
            good = False
            print(json.dumps({"part": part, "seed": given.seed, "failed": str(error)}), flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
