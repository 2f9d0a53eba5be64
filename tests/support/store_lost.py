"""A server whose whole home is lost, and its jobs back from their storage (`orch recover`)."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
from pathlib import Path

import psutil

from orch.control.raylocal import ray_processes
from orch_workers.config import WorkerPaths
from support.recovery import STEPS, Victim, kill, starts
from support.server import Server, wait_for


def lose_the_store(server: Server, storage: Path, rng: random.Random, undisturbed: bytes) -> list[str]:
    """Three jobs: one over, one that trains, one with a secret. Returns their ids; all are over."""
    at = f"--set=checkpoint.storage={storage}"
    over = Victim(server, at, "--set=run=exit 0", "--set=outputs=[]")
    over.finish()
    wait_for("its end is in its storage", lambda: list(storage.glob(f"{over.id}/ended/*.json")))
    victim = Victim(server, at)
    server.env["KEY"] = "old"
    run = """--set=run=sh -c 'if [ "$KEY" = new ]; then exit 0; else sleep 1000; fi'"""
    secretive = Victim(server, at, run, "--set=outputs=[]", "--set=secrets=[KEY]")
    secretive.wait_event("ProcessStarted")
    victim.wait_event("CheckpointCommitted", lambda data: data["step"] > 1)
    victim.wait_step(rng.randrange(STEPS // 6, STEPS // 2))
    training = victim.events("ProcessStarted")[-1]["pid"]
    for process in ray_processes(server.home):
        kill(process.pid)
    wait_for("the training process is gone with its agent", lambda: kill(training) is None)
    _lose_everything_here(server, [victim.id, secretive.id])

    expected = {over.id: "ended", victim.id: "resumed", secretive.id: "blocked"}
    assert _recover(server, storage, "--dry-run") == expected
    assert not (server.home / "server.json").exists(), "a dry run starts nothing"
    assert _recover(server, storage) == expected
    assert _recover(server, storage) == dict.fromkeys(expected, "known")
    assert "orch secrets" in secretive.detail()["reason"]
    server.env["KEY"] = "new"
    server.cli("secrets", secretive.id)

    detail = victim.finish()
    [start] = starts(detail)
    assert start["restored_step"] > 0
    assert start["restored_from"] == "storage"
    assert detail["attempt"] > 100, "above whatever may still be alive of the lost cluster"
    assert victim.final_bytes() == undisturbed
    secretive.finish()
    assert over.detail()["state"] == "SUCCEEDED"
    assert not starts(over.detail()), "what was over is not run again"
    return list(expected)


def _lose_everything_here(server: Server, jobs: list[str]) -> None:
    """As when the machine is replaced: the home, and what lay in its memory."""
    for path in server.home.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    for job in jobs:
        paths = WorkerPaths(job, 0, server.home / "node", server.home / "jobs")
        wait_for("its processes are gone", lambda job=job: not _running(job))
        shutil.rmtree(paths.snapshots_job, ignore_errors=True)


def _recover(server: Server, storage: Path, *options: str) -> dict[str, str]:
    document = json.loads(server.cli("recover", str(storage), "-o", "json", *options).stdout)
    return {job["job"]: job["outcome"] for job in document["jobs"]}


def _running(job: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get("ORCH_JOB_ID") == job:
                found.append(process)
    return found
