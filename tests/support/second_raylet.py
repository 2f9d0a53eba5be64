"""Another node of a server's Ray on this machine, and what becomes of agents there when the head is killed."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Self

from orch.control.home import Home
from orch.control.raylocal import (
    LOOPBACK,
    OBJECT_STORE_BYTES,
    TOKEN_VARIABLE,
    ray_environment,
    ray_processes,
    recorded_address,
)
from orch_workers.config import NODE_VARIABLE
from support.nodes import LOOPBACK_NODE
from support.recovery import STEPS, Victim, kill, starts
from support.server import Server, alive, wait_for

START_LIMIT_S = 60.0
GPUS = 1


class SecondRaylet:
    """A node with one GPU, which the head does not have: a job that asks for one runs here.

    Its token is a copy in a folder of its own: a server knows the processes of its own machine by the token's path.
    """

    def __init__(self, server: Server) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="orch-node-"))
        shutil.copy2(server.home / "ray-token", self.folder / "ray-token")
        record = Home(server.home).read_server()
        assert record is not None
        mine = {TOKEN_VARIABLE: str(self.folder / "ray-token")}
        env = {
            **server.env,
            **ray_environment(server.home, server.env),
            **mine,
            NODE_VARIABLE: str(self.folder),
        }
        del env["ORCH_HOME"]
        command = [
            *(sys.executable, "-P", str(LOOPBACK_NODE), "start", f"--address={record.ray_address}"),
            *(f"--node-ip-address={LOOPBACK}", "--num-cpus=1", f"--num-gpus={GPUS}", "--disable-usage-stats"),
            f"--object-store-memory={OBJECT_STORE_BYTES}",
            *("--min-worker-port=0", "--max-worker-port=0", "--dashboard-agent-listen-port=0"),
        ]
        done = subprocess.run(
            command,
            env=env,
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=START_LIMIT_S,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in ray_processes(self.folder):
            if process.pid != os.getpid():
                kill(process.pid)
        shutil.rmtree(self.folder)


def head_options() -> tuple[str, ...]:
    """Of `orch server start`: the head has no GPU, so that the job runs on the other node."""
    return ("--cpus", "1", "--gpus", "0")


def kill_head(server: Server, rng: random.Random, undisturbed: bytes) -> dict[str, Any]:
    """One job on the other node while everything on the head's machine is killed; what it took, checked."""
    address = recorded_address(server.home)
    victim = Victim(server, "--set=resources.gpus=1", "--set=env.PACE_S=0.02")
    victim.wait_event("CheckpointCommitted", lambda data: data["step"] > 1)
    victim.wait_step(rng.randrange(STEPS // 6, STEPS // 3))
    training, agent = server.pid(victim.id, "ProcessStarted"), server.pid(victim.id, "AgentUp")
    began_s = time.monotonic()
    for process in ray_processes(server.home):
        kill(process.pid)
    wait_for("the head is gone", lambda: not ray_processes(server.home))
    assert alive(agent)
    server.start(*head_options())
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
