"""Somebody sets a machine's clock by an hour while a controller works there: nobody waits for it, nothing restarts.

The controller, its store and its threads are real; the wall clock of its process is libfaketime's.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from orch.control.store import now_us
from orch.model.states import State
from support.faketime import FakeTime
from support.lone_controller import BACKOFF_S, DIE, JOB
from support.server import wait_for
from support.two import Two, say

pytestmark = pytest.mark.chaos

HOUR_S = 3600


@pytest.fixture
def clock(tmp_path: Path) -> Iterator[FakeTime]:
    with FakeTime(tmp_path) as found:
        yield found


@pytest.fixture
def one(tmp_path: Path, clock: FakeTime) -> Iterator[Two]:
    with Two(tmp_path) as found:
        (found.cluster / "endless").touch()
        yield found


@pytest.mark.parametrize("jump_s", [HOUR_S, -HOUR_S])
def test_a_backoff_is_as_long_as_it_was(one: Two, clock: FakeTime, jump_s: int) -> None:
    controller = one.controller(**clock.env)
    say(controller, "submit")
    one.until(State.RUNNING)
    (one.cluster / DIE).touch()  # the first one is replaced at once
    wait_for("the next one trains", lambda: one.store.lifecycle(JOB).attempt == 2 and _runs(one))
    (one.cluster / DIE).touch()
    one.until(State.RECOVERING)
    clock.jump(jump_s)
    one.until(State.RUNNING)  # within the limit of a wait, which is no hour
    times = [row.t_us for row in one.store.events(JOB) if row.type in {"AgentLost", "AgentUp"}]
    assert times == sorted(times), "in the order of their numbers, whatever the clock did"
    waited_s = (times[-1] - times[-2]) / 1e6
    assert 0.5 * BACKOFF_S < waited_s < HOUR_S / 10, "nor was it cut short"
    assert one.store.lifecycle(JOB).attempt == 3


def test_jumps_while_nothing_happens(one: Two, clock: FakeTime) -> None:
    """Nothing is restarted; a controller that comes after a jump back begins behind what is written down."""
    clock.jump(HOUR_S)
    controller = one.controller(**clock.env)
    say(controller, "submit")
    one.until(State.RUNNING)
    clock.jump(-HOUR_S)
    before = one.store.lifecycle(JOB)
    controller.kill()
    controller.communicate()
    one.controller(**clock.env)
    wait_for("the next one adopts", lambda: [row for row in one.store.events(JOB) if row.type == "Adopted"])
    after = one.store.lifecycle(JOB)
    assert (after.attempt, after.state) == (1, State.RUNNING)
    [adopted] = [row for row in one.store.events(JOB) if row.type == "Adopted"]
    assert adopted.t_us >= before.seen_us > now_us() + HOUR_S * 900_000


def _runs(one: Two) -> bool:
    return one.state() is State.RUNNING
