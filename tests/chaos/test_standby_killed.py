"""Real SIGKILLs around the standby process: it takes over, it dies, it is not ready, and the bytes are the same."""

from __future__ import annotations

import json
import random
import textwrap
from pathlib import Path
from typing import Any

import psutil
import pytest

from support.jobs import Gate, held, write_job
from support.recovery import STEPS, Victim, assert_recovered, kill, starts
from support.server import Server, wait_for

pytestmark = pytest.mark.chaos

SLOWLY = "--set=env.PRODUCTS=20"
OFTEN = "--set=restart.max_failures=20"
READY_LIMIT_S = 240.0
"""At the lowest priority, beside everything else that runs on the machine."""


@pytest.fixture(scope="module")
def undisturbed(server: Server) -> bytes:
    victim = Victim(server, "--set=restart.standby=false")
    detail = victim.finish()
    assert len(starts(detail)) == 1
    assert detail["usage"].get("standby", {}).get("state") != "ready"
    return victim.final_bytes()


def standby_of(victim: Victim) -> dict[str, Any]:
    found: dict[str, Any] = victim.detail()["usage"].get("standby") or {}
    return found


class Slow(Victim):
    """Does no step while somebody waits for its standby: how long that takes depends on the machine."""

    def __init__(self, server: Server, folder: Path) -> None:
        self.hold = folder / "hold"
        super().__init__(server, SLOWLY, OFTEN, f"--set=env.HOLD={self.hold}")

    def wait_standby(self, *, but: int = 0) -> int:
        with held(self.hold):
            return wait_ready(self, but=but)


def wait_ready(victim: Victim, *, but: int = 0) -> int:
    """Until a standby is ready, other than the process `but`; its pid."""

    def ready() -> int | None:
        found = standby_of(victim)
        assert not victim.over, "the job was over first"
        if found.get("state") == "ready" and found["pid"] != but and psutil.pid_exists(found["pid"]):
            return int(found["pid"])
        return None

    pid: int = wait_for(f"a standby of {victim.id} is ready", ready, READY_LIMIT_S)
    return pid


def recovered(victim: Victim, number: int) -> dict[str, Any]:
    """The event of the first new step of restart `number`."""
    return victim.wait_event("Recovered", lambda data: data["generation"].endswith(f"{number:06d}"))


def test_it_takes_over_dies_and_is_replaced(
    server: Server, undisturbed: bytes, rng: random.Random, tmp_path: Path
) -> None:
    victim = Slow(server, tmp_path)
    victim.wait_step(rng.randrange(5, STEPS // 20))
    standby = victim.wait_standby()
    assert victim.kill_training()
    first = recovered(victim, 2)
    assert first["standby"]
    assert victim.events("ProcessStarted")[-1]["pid"] == standby
    assert sum(first["breakdown"].values()) == pytest.approx(first["recovery_s"], abs=0.001)

    # The next one is not warm yet; at the latest it is by then.
    assert victim.kill_training()
    recovered(victim, 3)

    dead = victim.wait_standby()
    assert kill(dead)
    victim.wait_standby(but=dead)

    both = victim.wait_standby()
    assert kill(both)
    assert victim.kill_training()
    assert not recovered(victim, 4)["standby"], "there was none to take over"

    detail = victim.finish()
    assert_recovered(detail, kills=3)
    assert {start["restored_from"] for start in starts(detail)[1:]} == {"memory"}
    assert victim.final_bytes() == undisturbed
    victim.assert_nothing_left()


def test_it_ends_with_its_agent(
    server: Server, undisturbed: bytes, rng: random.Random, tmp_path: Path
) -> None:
    victim = Slow(server, tmp_path)
    victim.wait_step(rng.randrange(5, STEPS // 20))
    orphan = victim.wait_standby()
    assert victim.kill_agent()
    wait_for("the dead agent's standby has ended", lambda: not psutil.pid_exists(orphan))
    detail = victim.finish()
    assert_recovered(detail, kills=1)
    assert detail["attempt"] == 2
    assert victim.events("ProcessStarted")[-1]["pid"] != orphan
    assert victim.final_bytes() == undisturbed
    victim.assert_nothing_left()


def test_a_cancel_ends_it_too(server: Server, rng: random.Random, tmp_path: Path) -> None:
    victim = Slow(server, tmp_path)
    victim.wait_step(rng.randrange(5, STEPS // 20))
    standby = victim.wait_standby()
    server.cli("cancel", victim.id, "--now")
    server.cli("wait", victim.id, check=3)
    wait_for("the standby has ended", lambda: not psutil.pid_exists(standby))
    victim.assert_nothing_left()


CRASHES = """
    import os, time, orch, torch
    run = orch.training(value=torch.zeros(1))
    while run.step_count < 1000:
        run.step()
        if run.step_count == 30:
            if "FIRST" not in os.listdir("."):
                open("FIRST", "w").close()
                open(os.environ["GATE"]).read()
            raise ValueError("it cannot go on")
"""


def test_a_crash_loop_is_one_for_a_standby_too(server: Server, tmp_path: Path) -> None:
    """Its own exit, twice at the same step, the second time in a process that was warm: FAILED, with the traceback."""
    gate = Gate(tmp_path)
    folder = write_job(
        tmp_path / "job",
        "python train.py",
        {"train.py": textwrap.dedent(CRASHES)},
        env={"GATE": str(gate.path)},
        checkpoint={"every": {"steps": 10}},
    )
    victim = Victim(server, folder=folder)
    wait_ready(victim)
    gate.open()
    server.cli("wait", victim.id, check=1)
    detail = victim.detail()
    assert detail["state"] == "FAILED"
    assert len(starts(detail)) == 2
    assert [ended["code"] for ended in victim.events("ProcessExited")] == [1, 1]
    assert "it cannot go on" in json.dumps(detail)
    victim.assert_nothing_left()
