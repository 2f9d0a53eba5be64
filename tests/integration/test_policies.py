"""When to checkpoint and what to keep, from the job file to what lies in storage, over a kill."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from orch_policies.retention import Best, Rules
from orch_workers.checkpoint import Catalog, RestorePoint, open_storage
from support.jobs import Gate, write_job
from support.server import Server, wait_for

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("own_jobs")]

# The loss is best at step 60. Saves by its own word up to step 200, from then on only by orch's clock.
SCRIPT = """
import hashlib, os
import orch

there = os.environ["THERE"]
run = orch.training(total=[0])
while not os.path.exists(f"{there}/end"):
    run.values["total"][0] += 1
    step = run.step_count + 1
    run.step(val_loss=abs(step - 60))
    if step % 20 == 0 and step <= 200:
        run.save()
    if step == 20:
        open(f"{there}/gate").read()
    hashlib.pbkdf2_hmac("sha256", b"work", b"of a step", 20_000)  # so that it is not over before it is killed
"""
KEEP = {"last": 2, "every_steps": 100, "best": {"metric": "val_loss", "count": 1}}


def committed(server: Server, job: str) -> dict[int, dict[str, Any]]:
    """Step → what was told of its commit."""
    events = server.events(job)
    return {e["data"]["step"]: e["data"] for e in events if e["type"] == "CheckpointCommitted"}


def test_auto_and_the_rules_of_keep_over_a_kill(server: Server, tmp_path: Path) -> None:
    folder = write_job(
        tmp_path / "work", "python train.py", {"train.py": SCRIPT}, env={"THERE": str(tmp_path)},
        checkpoint={"every": "auto", "max_overhead": "50%", "keep": KEEP},
    )  # fmt: skip
    gate = Gate(tmp_path)
    job = server.submit(folder)
    catalog = Catalog(open_storage(str(server.home / "storage")), job)
    wait_for("step 20 is committed", lambda: 20 in committed(server, job))
    [point] = [point for point in catalog.restore_points() if point.step == 20]
    assert catalog.pin(RestorePoint(*point[:2]), "for the test")
    gate.open()
    wait_for("step 200 is committed", lambda: 200 in committed(server, job))
    server.kill_training(job)

    def by_the_clock() -> list[int]:
        return [
            step for step, told in committed(server, job).items() if told["reason"] == "asked" and step > 200
        ]

    wait_for("a save by the clock after the restart", by_the_clock)
    found = wait_for("status tells of it", lambda: _told(server, job))
    assert found["auto"]
    assert found["failures"] == 1
    assert found["interval_s"] >= 10
    assert re.fullmatch(
        r"every \d+ s \(auto: a save blocks \S+ s, lasts \S+ s, a failure every [\d.]+ (?:h|min)"
        r"(; never under 10 s)?\)",
        found["sentence"],
    ), found["sentence"]
    assert re.search(
        r"^Interval +every \d+ s \(auto: a save blocks ", server.cli("status", job).stdout, re.MULTILINE
    )
    [shown] = json.loads(server.cli("status", job, "-o", "json").stdout)["jobs"]
    assert shown["checkpointing"]["sentence"].startswith("every ")

    (tmp_path / "end").touch()
    ended = server.wait(job)
    assert ended["restarts"] == 1
    steps = [point.step for point in catalog.restore_points()]
    assert steps[2:] == [200, 100, 60, 20, 1], "the newest two before them, and each for its rule"
    kept = catalog.judge(Rules(last=2, every_steps=100, best=Best("val_loss"))).kept
    reasons = {point.step: reason for point, reason in kept.items()}
    assert {step: reasons[step] for step in (200, 60, 20, 1)} == {
        200: "every 100 steps",
        60: "best 1 by val_loss (min)",
        20: "pinned",
        1: "every 100 steps",
    }
    states = {one["step"]: one["state"] for one in ended["checkpoints"]}
    assert {step for step, state in states.items() if state == "committed"} == set(steps)


def _told(server: Server, job: str) -> dict[str, Any] | None:
    """What the agent says of its pace once it has said it after the restart."""
    found: dict[str, Any] = server.job(job)["checkpointing"] or {}
    return found if found.get("failures") else None
