"""The TensorFlow example as a job: killed in the middle, and equal at its end to the one that was left alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from support.recovery import assert_recovered, kill, starts
from support.server import Server, wait_for

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("own_jobs")]

EXAMPLE = Path(__file__).parents[2] / "examples" / "tensorflow"


def submit(server: Server, *options: str) -> str:
    return server.submit(EXAMPLE, "--set=run=python train.py --epochs 12", *options)


def final(server: Server, job: str, folder: Path) -> dict[str, bytes]:
    server.cli("wait", job)
    server.cli("fetch", job, "--to", str(folder))
    with np.load(folder / "final.npz") as found:
        return {name: found[name].tobytes() for name in found.files}


def test_the_example_survives_a_kill(server: Server, tmp_path: Path) -> None:
    calm = submit(server)
    victim = submit(server, "--set=checkpoint.every.steps=20")
    wait_for(f"{victim} has trained a while", lambda: (server.client().job(victim)["step"] or 0) >= 50)
    events = server.client().events(victim).events
    assert kill([event["data"]["pid"] for event in events if event["type"] == "ProcessStarted"][-1])
    assert final(server, victim, tmp_path / "victim") == final(server, calm, tmp_path / "calm")
    detail = server.client().job(victim)
    assert_recovered(detail, kills=1)
    assert starts(detail)[1]["restored_step"] % 20 == 0
