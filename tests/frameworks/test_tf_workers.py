"""Two TensorFlow workers on CPUs: one is killed, and both go on from the same step at fresh addresses.

Against an undisturbed run, byte for byte: `python -m tests.soak tensorflow-workers`.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest

from support import tf_workers
from support.workers import Machine


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch):
    made = Machine(Path(tempfile.mkdtemp(prefix="orch-")), monkeypatch)
    yield made
    made.close()


def test_a_killed_worker_is_recovered_and_the_ports_are_fresh(machine):
    gang = tf_workers.start(machine, tf_workers.HOLD_AT)
    tf_workers.kill_one(gang, 1)
    assert len(tf_workers.finish(gang)) > 1000
    leader = gang.ranks[0]
    (restored,) = leader.told("Restored")
    assert restored["step"] == 30, "saved every ten steps, and killed at 35"
    assert leader.told("RestartDecided")[0]["reason"].startswith("rank 1: killed by SIGKILL")
    assert "not exact" not in leader.notes()
    first, second = [json.loads(text) for text in tf_workers.configs(gang, 1)]
    assert first["task"] == {"type": "worker", "index": 1}
    ports = [one["cluster"]["worker"] for one in (first, second)]
    assert len({*ports[0], *ports[1]}) == 4, "nobody waits at an address of an older generation"
    assert ports == [json.loads(text)["cluster"]["worker"] for text in tf_workers.configs(gang, 0)]
