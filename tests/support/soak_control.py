"""Repetitions about the controller, its store and its clock, for `python -m tests.soak`."""

from __future__ import annotations

import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from support import losing_head, losing_postgresql
from support.accounts import keep_timeline
from support.faketime import FakeTime
from support.leftovers import assert_nothing_left
from support.postgres import Postgres
from support.recovery import Victim, assert_recovered, starts
from support.server import Server, own_server, wait_for
from support.some import only
from support.store_lost import lose_the_store
from support.transitions import LIVES, assert_nothing_twice, live

HOUR_S = 3600


def transitions(server: Server, rng: random.Random, count: int) -> dict[str, Any]:
    """The controller SIGKILLed at every place of every life, `count` times; some of them in one life."""
    calm = Victim(server)
    calm.finish()
    undisturbed = calm.final_bytes()
    adopted: list[float] = []
    kills: dict[str, int] = {}
    for _ in range(count):
        for name in only(LIVES):
            life = LIVES[name]
            order = {place: number for number, place in enumerate(life.places)}
            left = rng.sample(life.places, len(life.places))
            while left:
                places = sorted(left[: life.at_once], key=order.__getitem__)
                left = left[life.at_once :]
                lived = live(server, name, places, undisturbed)
                took = lived["adopted_s"]
                told = f"life {name!r}, the controller killed at {', '.join(places)}."
                keep_timeline(server, lived["victim"].id, f"controller_{name.replace(' ', '_')}", told)
                print(f"{name}: killed at {places}, adopted after {took} s", file=sys.stderr, flush=True)
                adopted += took
                kills[name] = kills.get(name, 0) + len(places)
    return {
        "kills": kills,
        "equal_bytes": True,
        "adopted_s": {"median": statistics.median(adopted), "longest": max(adopted), "of": len(adopted)},
    }


def postgresql(rng: random.Random, count: int) -> dict[str, Any]:
    """PostgreSQL as the store: it goes away in every way, `count` times each; the controller killed at every place."""
    told = []
    with (
        tempfile.TemporaryDirectory(prefix="orch-pg-") as folder,
        Postgres(Path(folder)) as postgres,
        losing_postgresql.server_on(postgres) as server,
    ):
        calm = Victim(server)
        calm.finish()
        for _ in range(count):
            for how in losing_postgresql.AWAY:
                told.append(losing_postgresql.lose(server, postgres, how, rng, calm.final_bytes())["how"])
                print(f"PostgreSQL {how}", file=sys.stderr, flush=True)
        found = transitions(server, rng, 1)
    return {
        "away": {how: told.count(how) for how in sorted(set(told))},
        "equal_bytes": True,
        "transitions": found,
    }


def recover(rng: random.Random, count: int) -> dict[str, Any]:
    """The whole home lost, and the jobs back from storage, `count` times."""
    for _ in range(count):
        with own_server() as server, tempfile.TemporaryDirectory() as storage:
            calm = Victim(server)
            calm.finish()
            jobs = lose_the_store(server, Path(storage) / "s", rng, calm.final_bytes())
            server.stop()
            assert_nothing_left(server.home, [*jobs, calm.id])
    return {"homes_lost": count, "equal_bytes": True}


def head(rng: random.Random, count: int) -> dict[str, Any]:
    """Ray's head killed under a job on another node, `count` times on one home (`ray_state: disk`)."""
    told = []
    with losing_head.elsewhere() as server:
        gpu = "--set=resources.gpus=1"
        calm = Victim(server, gpu)
        calm.finish()
        told = [losing_head.kill_head(server, rng, calm.final_bytes()) for _ in range(count)]
        server.stop()
    return {
        "heads_killed": count,
        "equal_bytes": True,
        "started_s": [one["started_s"] for one in told],
        "adopted_s": [one["adopted_s"] for one in told],
    }


def clock(rng: random.Random, count: int) -> dict[str, Any]:
    """The clock of all of Ray set by an hour, to and fro, under one job; its training process killed once."""
    with (
        tempfile.TemporaryDirectory() as folder,
        FakeTime(Path(folder)) as fake,
        own_server(env=fake.env) as server,
    ):
        calm = Victim(server)
        calm.finish()
        victim = Victim(server, "--set=env.STEPS=600", "--set=env.PRODUCTS=20")
        victim.wait_event("CheckpointCommitted", lambda data: data["step"] > 1)
        for number in range(count):
            fake.jump(rng.choice([HOUR_S, -HOUR_S, 0]))
            if number == count // 2:
                assert victim.kill_training()
                victim.wait_training()
            moment_s = time.monotonic() + rng.random() * 8 / count
            wait_for("the random moment", lambda at=moment_s: time.monotonic() >= at)
        detail = victim.finish()
        assert_recovered(detail, kills=1)
        assert len(starts(detail)) == 2, "a jump was taken for a failure"
        assert_nothing_twice(server.client().events(victim.id).events)
        assert victim.final_bytes() == calm.final_bytes(), "the final bytes differ"
    return {"jumps": count, "equal_bytes": True}
