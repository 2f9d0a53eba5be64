"""`python -m tests.soak 30m`: jobs come and go for so long, and something is killed every few seconds."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from support.recovery import Victim, kill, starts
from support.server import Server, wait_for

JOBS_AT_ONCE = 2
PAUSE_S = (0.5, 5.0)
"""Between two blows."""
CANCELLED_SHARE = 0.1
OPTIONS = (
    "--set=env.PRODUCTS=10",
    "--set=restart.max_failures=1000",
)
END_LIMIT_S = 300.0


def _guard(victim: Victim) -> int | None:
    try:
        parent = psutil.Process(victim.events("ProcessStarted")[-1]["pid"]).parent()
    except psutil.NoSuchProcess:
        return None
    # Where it is gone, the training process is on its way too and has another parent.
    return kill(parent.pid) if parent is not None and parent.name() == "orch-guard" else None


def _standby(victim: Victim) -> int | None:
    found = (victim.detail()["usage"] or {}).get("standby") or {}
    return kill(found["pid"]) if found.get("state") == "ready" and psutil.pid_exists(found["pid"]) else None


def _stopped_for_a_moment(victim: Victim) -> int | None:
    """SIGSTOP and SIGCONT: a pause is no failure."""
    pid = int(victim.events("ProcessStarted")[-1]["pid"])
    try:
        os.kill(pid, signal.SIGSTOP)
        os.kill(pid, signal.SIGCONT)
    except ProcessLookupError:
        return None
    return pid


def _preempted(victim: Victim) -> int | None:
    done = victim.server.cli("preempt", victim.id, "--grace", "10s", check=None)
    return 1 if done.returncode == 0 else None


def _damaged(victim: Victim) -> int | None:
    """The newest checkpoint in storage loses a byte; who restores it next finds out."""
    manifests = (victim.server.home / "storage" / victim.id / "manifests").glob("*/*.json")
    newest = max(manifests, key=lambda path: (path.parent.name, path.stem), default=None)
    if newest is None:
        return None
    shards = victim.server.home / "storage" / victim.id / "shards" / newest.parent.name / newest.stem
    for shard in shards.glob("*"):
        try:
            content = bytearray(shard.read_bytes())
            content[-1] ^= 1
            shard.write_bytes(content)
        except FileNotFoundError:  # the rules of `keep` were quicker
            return None
    return 1


BLOWS: dict[str, Callable[[Victim], int | None]] = {
    "training process killed": Victim.kill_training,
    "guard killed": _guard,
    "agent killed": Victim.kill_agent,
    "controller killed": Victim.kill_controller,
    "standby killed": _standby,
    "stopped for a moment": _stopped_for_a_moment,
    "preempted": _preempted,
    "checkpoint damaged": _damaged,
}


class Soak:
    def __init__(self, server: Server, rng: random.Random) -> None:
        self._server, self._rng = server, rng
        calm = Victim(server, *OPTIONS)
        calm.finish()
        self._undisturbed = calm.final_bytes()
        self._live: list[Victim] = []
        self._cancelled: set[str] = set()
        self.blows: Counter[str] = Counter()
        self.ended: Counter[str] = Counter()
        self.restarts = 0
        self.goodputs: list[float] = []
        self.lost_steps = 0

    def go_on(self, seconds_s: float) -> None:
        end_s = time.monotonic() + seconds_s
        while time.monotonic() < end_s:
            self._reap()
            while len(self._live) < JOBS_AT_ONCE:
                self._live.append(Victim(self._server, *OPTIONS))
            until_s = time.monotonic() + self._rng.uniform(*PAUSE_S)
            wait_for("the next blow", lambda until_s=until_s: time.monotonic() >= until_s)
            self._strike(self._rng.choice(self._live))
        for victim in self._live:
            wait_for(f"{victim.id} ends", lambda victim=victim: victim.over, END_LIMIT_S)
        self._reap()

    def _strike(self, victim: Victim) -> None:
        if victim.over or not victim.events("ProcessStarted"):
            return
        if self._rng.random() < CANCELLED_SHARE / 4:
            self._cancelled.add(victim.id)
            self._server.cli(
                "cancel", victim.id, *(["--now"] if self._rng.random() < 0.5 else []), check=None
            )
            self.blows["cancelled"] += 1
            return
        name = self._rng.choice(list(BLOWS))
        if BLOWS[name](victim):
            self.blows[name] += 1

    def _reap(self) -> None:
        """What is over must be right, and gone."""
        for victim in [one for one in self._live if one.over]:
            self._live.remove(victim)
            detail = victim.detail()
            self.ended[detail["state"]] += 1
            recoveries = starts(detail)[1:]
            self.restarts += len(recoveries)
            self.lost_steps += sum(one["lost_steps"] or 0 for one in recoveries)
            if victim.id not in self._cancelled or detail["state"] == "SUCCEEDED":
                assert detail["state"] == "SUCCEEDED", f"{victim.id}: {detail['state']}: {detail['reason']}"
                assert victim.final_bytes() == self._undisturbed, f"{victim.id}: the final bytes differ"
                self.goodputs.append(detail["goodput"])
            victim.assert_nothing_left()


def mixed(server: Server, rng: random.Random, seconds_s: float) -> dict[str, Any]:
    soak = Soak(server, rng)
    before = _shared_memory()
    soak.go_on(seconds_s)
    assert _shared_memory() <= before, f"left in shared memory: {_shared_memory() - before}"
    goodputs = sorted(soak.goodputs)
    return {
        "seconds_s": seconds_s,
        "blows": dict(sorted(soak.blows.items())),
        "jobs": dict(soak.ended),
        "equal_bytes": True,
        "restarts": soak.restarts,
        "lost_steps": soak.lost_steps,
        "goodput": {"median": goodputs[len(goodputs) // 2], "least": goodputs[0]} if goodputs else None,
    }


def _shared_memory() -> set[str]:
    return {path.name for path in Path("/dev/shm").iterdir() if path.name.startswith("orch")}
