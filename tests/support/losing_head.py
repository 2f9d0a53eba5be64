"""The head of a server's Ray is killed, and what becomes of agents on another node."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from orch.control.raylocal import ray_processes, recorded_address
from support.nodes import Node
from support.recovery import STEPS, Victim, kill, starts
from support.server import Server, alive, own_server, wait_for

HEAD_OPTIONS = ("--cpus", "1", "--gpus", "0")
"""Of `orch server start`: the head has no GPU, so that a job which asks for one runs on the other node."""


@contextmanager
def elsewhere() -> Iterator[Server]:
    """A server that keeps Ray's state on disk, and a node on another machine, which has the GPU."""
    with own_server("ray_state: disk\n", *HEAD_OPTIONS) as server, Node(server, cpus=1, gpus=1, apart=True):
        yield server


def kill_head(server: Server, rng: random.Random, undisturbed: bytes) -> dict[str, Any]:
    """One job on the other node while everything on the head's machine is killed; what it took, checked."""
    address = recorded_address(server.home)
    victim = Victim(server, "--set=resources.gpus=1", "--set=env.PRODUCTS=30")
    victim.wait_event("CheckpointCommitted", lambda data: data["step"] > 1)
    victim.wait_step(rng.randrange(STEPS // 6, STEPS // 3))
    training, agent = server.pid(victim.id, "ProcessStarted"), server.pid(victim.id, "AgentUp")
    began_s = time.monotonic()
    for process in ray_processes(server.home):
        kill(process.pid)
    wait_for("the head is gone", lambda: not ray_processes(server.home))
    assert alive(agent)
    server.start(*HEAD_OPTIONS)
    started_s = time.monotonic() - began_s
    assert recorded_address(server.home) == address
    victim.wait_event("Adopted")
    adopted_s = time.monotonic() - began_s
    assert alive(training), "nobody stopped it"
    detail = victim.finish()
    [start] = starts(detail)
    assert start["restored_step"] is None, "it was never restarted"
    assert detail["attempt"] == 1
    assert {data["pid"] for data in victim.events("AgentUp")} == {agent}
    assert victim.final_bytes() == undisturbed
    victim.assert_nothing_left()
    return {"job": victim.id, "started_s": round(started_s, 1), "adopted_s": round(adopted_s, 1)}
