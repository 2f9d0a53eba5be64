"""Places that are given up on request, at every moment. Machines that go away with notice: test_nodes.py."""

from __future__ import annotations

import contextlib
import random
from typing import TYPE_CHECKING, Any

import pytest

from support.recovery import STEPS, Victim, assert_chain_kept, starts
from support.server import Server

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.chaos


@pytest.fixture(scope="module")
def undisturbed(server: Server) -> bytes:
    victim = Victim(server)
    victim.finish()
    return victim.final_bytes()


def assert_nothing_lost(victim: Victim, undisturbed: bytes, *, attempts: int) -> dict[str, Any]:
    detail = victim.finish()
    assert detail["attempt"] == attempts
    assert not any(start["lost_steps"] for start in starts(detail)), starts(detail)
    last = starts(detail)[-1]
    assert last["lost_steps"] == 0
    assert (last["restored_step"] or 0) > 0, f"started over: {last}"
    assert victim.final_bytes() == undisturbed
    assert_chain_kept(victim)
    victim.assert_nothing_left()
    return detail


def test_on_request_nothing_is_lost(server: Server, undisturbed: bytes, rng: random.Random) -> None:
    victim = Victim(server)
    victim.wait_step(rng.randrange(STEPS // 6, STEPS // 2))
    said = server.cli("preempt", victim.id, "--grace", "20s").stdout
    assert victim.id in said
    detail = assert_nothing_lost(victim, undisturbed, attempts=2)
    again = starts(detail)[1]
    assert "asked for with `orch preempt`" in again["cause"]
    assert again["charged_to"] == "preemptions"
    assert again["seen"] == "its worker left with exit code 75: asked for with `orch preempt`"
    story = server.cli("events", victim.id).stdout
    assert "notice to rank 0 by orch" in story
    assert [event["node_id"] for event in victim.events("PreemptionNoticed")] == [""]
    late = server.cli("preempt", victim.id, check=2)  # after success
    assert "has no place" in late.stderr


def test_at_every_moment_of_its_life(server: Server, undisturbed: bytes) -> None:
    """Before its agent answers, while it starts, while it restores, at a new step, twice at once, and again with less
    time. Nothing is lost that was done, and no attempt hangs.
    """
    victim = Victim(server)
    client = server.client()
    moments: list[Callable[[int], object]] = [
        lambda attempt: victim.wait_event("GangGranted", lambda data: data["attempt"] == attempt),
        lambda attempt: victim.wait_event("AgentUp", lambda data: data["attempt"] == attempt),
        lambda attempt: _started(victim, attempt, "ProcessStarted"),
        lambda attempt: _started(victim, attempt, "Recovered"),
        lambda attempt: (_started(victim, attempt, "Recovered"), client.preempt(victim.id, grace_s=60)),
        lambda attempt: _started(victim, attempt, "Restored"),
    ]
    for attempt, moment in enumerate(moments, start=1):
        moment(attempt)
        with contextlib.suppress(
            Exception
        ):  # in the last but one it may have left already: it has no place then
            client.preempt(victim.id, grace_s=20)
        victim.wait_event("GangGranted", lambda data, attempt=attempt: data["attempt"] == attempt + 1)
    assert_nothing_lost(victim, undisturbed, attempts=len(moments) + 1)


def _started(victim: Victim, attempt: int, kind: str) -> None:
    victim.wait_event(kind, lambda data: data["generation"].startswith(f"{attempt:06d}."))
