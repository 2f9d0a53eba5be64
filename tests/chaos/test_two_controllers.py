"""Two controllers on one store: the newer one acts; the older one stops, and does nothing of what it had in hand."""

from __future__ import annotations

import os
import random
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from orch.control.killpoints import FILE_NAME, STRUCK_NAME
from orch.model.states import State
from support.lone_controller import FREEZE, JOB
from support.server import wait_for
from support.two import Two, say

pytestmark = pytest.mark.chaos


@pytest.fixture(params=["sqlite", "postgresql"])
def two(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Two]:
    env = {}
    if request.param == "postgresql":
        env = {"ORCH_STORE": request.getfixturevalue("postgres").database()}
    with Two(tmp_path, env) as found:
        yield found


def assert_woken_does_nothing(two: Two, older: subprocess.Popen[str]) -> None:
    """It wakes, says that it was replaced, and ends; the store and the cluster are as they were."""
    wait_for("the newer one has done everything", lambda: not two.store.pending_commands())
    acts, told = two.acts(older.pid), two.told()
    os.kill(older.pid, signal.SIGCONT)
    out, _ = older.communicate(timeout=30)
    assert "taken: controller 2 took the store over from controller 1" in out
    assert older.returncode == 0
    assert two.acts(older.pid) == acts, "it acted after it was replaced"
    assert (two.told(), two.store.pending_commands()) == (told, []), "it wrote after it was replaced"


FROZEN_AT = (
    "RequestGang:before",
    "GangGranted:before",
    "StartAgents:before",
    "CloseJob:before",
    "WorkerEnded:before",
)


def test_one_that_was_frozen(two: Two, rng: random.Random) -> None:
    place = rng.choice(FROZEN_AT)
    print(f"frozen at {place}")
    (two.home.root / FILE_NAME).write_text(f"{place} stop\n")
    older = two.controller()
    say(older, "submit")
    two.frozen(older)
    assert f"struck {place}" in (two.home.root / STRUCK_NAME).read_text()
    newer = two.controller()
    two.until(State.SUCCEEDED)
    assert_woken_does_nothing(two, older)
    counted = Counter(kind for kind, _ in two.told())
    assert counted["GangGranted"] == counted["WorkerEnded"] == counted["Closed"] == 1, counted
    assert newer.poll() is None


def test_one_that_was_frozen_between_its_look_and_its_act(two: Two) -> None:
    """The command was still wanted when it looked; when it wakes, the agents are none of its business any more."""
    (two.cluster / "endless").touch()
    older = two.controller()
    say(older, "submit")
    two.until(State.RUNNING)
    (two.cluster / FREEZE).touch()
    say(older, "cancel")
    two.frozen(older)
    before = two.acts(older.pid)
    assert not any(act[0] == "kill_agent" for act in before)
    two.controller()
    two.until(State.CANCELLED)
    # An agent that only the newer one knows of: the older one's loop over its own list would end it.
    (two.cluster / "agents" / f"{JOB}.1.0").touch()
    assert_woken_does_nothing(two, older)
    assert (two.cluster / "agents" / f"{JOB}.1.0").exists()


def test_one_that_has_nothing_to_write(two: Two) -> None:
    """It learns of its successor by looking, not only when it writes."""
    older = two.controller()
    assert older.stdout is not None
    assert older.stdout.readline() == "holds the store\n"
    two.controller()
    out, _ = older.communicate(timeout=30)
    assert "took the store over" in out
