"""The cluster itself falls silent: its GCS is stopped and woken again. For tests/chaos and the soak."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import psutil

from orch.control.raylocal import ray_processes
from orch_workers.checkpoint import Catalog, open_storage
from support.accounts import keep_timeline
from support.leftovers import assert_nothing_left, of_jobs
from support.recovery import STEPS, Victim, assert_chain_kept, assert_recovered, starts
from support.server import Server, alive, own_server, wait_for

if TYPE_CHECKING:
    import random

LIMIT_S = 60.0
STEPS_FEW = STEPS // 2


def lease_over(rng: random.Random) -> dict[str, Any]:
    """On a server of its own, whose lease is short."""
    with own_server("lease: 3s\n") as server:
        found = _cluster_frozen(server, rng)
        jobs = [job["id"] for job in server.client().jobs()]
        server.stop()
        assert_nothing_left(server.home, jobs)
    return found


def _cluster_frozen(server: Server, rng: random.Random) -> dict[str, Any]:
    """The controller is there all the time, and must not be taken for the cluster."""
    settings = ("checkpoint.every.seconds=1000", "env.PRODUCTS=30", f"env.STEPS={STEPS_FEW}")
    victim = Victim(server, *(f"--set={setting}" for setting in settings))
    victim.wait_step(rng.randrange(STEPS // 20, STEPS // 10))
    agent, training = (victim.events(kind)[-1]["pid"] for kind in ("AgentUp", "ProcessStarted"))
    gcs = _gcs(server)
    gcs.suspend()
    stopped_s = time.monotonic()
    try:
        wait_for("the training process ends", lambda: not alive(training), LIMIT_S)
        wait_for("its agent ends", lambda: not alive(agent), LIMIT_S)
        gone_s = time.monotonic() - stopped_s
        wait_for("nothing of the job runs", lambda: not _processes_of(victim), LIMIT_S)
        saved = _newest_in_storage(victim)
        assert saved > 1, "its newest snapshot was to be in storage first"
    finally:
        gcs.resume()
    detail = victim.finish()
    assert_recovered(detail, kills=1)
    assert starts(detail)[-1]["restored_step"] == saved
    assert starts(detail)[-1]["lost_steps"] == 0
    assert detail["charges"]["failures"] == 0, "nothing was wrong with the job"
    told = server.cli("events", victim.id).stdout
    assert "longer than the lease of" in told
    assert_chain_kept(victim, STEPS_FEW)
    keep_timeline(server, victim.id, "cluster_silent", "its cluster silent for longer than the lease.")
    victim.assert_nothing_left()
    return {"ended_after_s": round(gone_s, 2), "restored_step": saved}


def _gcs(server: Server) -> psutil.Process:
    return next(process for process in ray_processes(server.home) if process.name() == "gcs_server")


def _processes_of(victim: Victim) -> list[str]:
    return [found for found in of_jobs(victim.server.home, [victim.id]) if found.startswith("process")]


def _newest_in_storage(victim: Victim) -> int:
    points = Catalog(open_storage(str(victim.server.home / "storage")), victim.id).restore_points()
    return points[0].step if points else 0
