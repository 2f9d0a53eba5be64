"""Real SIGKILLs around the standby process: it takes over, it dies, it is not ready, and the bytes are the same."""

from __future__ import annotations

import random
from typing import Any

import psutil
import pytest

from support.recovery import STEPS, Victim, assert_recovered, kill, starts
from support.server import Server, wait_for

pytestmark = pytest.mark.chaos

SLOWLY = "--set=env.PACE_S=0.04"
OFTEN = "--set=restart.max_failures=20"
READY_LIMIT_S = 90.0
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


def test_it_takes_over_dies_and_is_replaced(server: Server, undisturbed: bytes, rng: random.Random) -> None:
    victim = Victim(server, SLOWLY, OFTEN)
    victim.wait_step(rng.randrange(5, STEPS // 20))
    standby = wait_ready(victim)
    assert victim.kill_training()
    first = recovered(victim, 2)
    assert first["standby"]
    assert victim.events("ProcessStarted")[-1]["pid"] == standby
    assert sum(first["breakdown"].values()) == pytest.approx(first["recovery_s"], abs=0.001)

    # The next one is not warm yet; at the latest it is by then.
    assert victim.kill_training()
    recovered(victim, 3)

    dead = wait_ready(victim)
    assert kill(dead)
    wait_ready(victim, but=dead)

    both = wait_ready(victim)
    assert kill(both)
    assert victim.kill_training()
    assert not recovered(victim, 4)["standby"], "there was none to take over"

    detail = victim.finish()
    assert_recovered(detail, kills=3)
    assert {start["restored_from"] for start in starts(detail)[1:]} == {"memory"}
    assert victim.final_bytes() == undisturbed
    victim.assert_nothing_left()
