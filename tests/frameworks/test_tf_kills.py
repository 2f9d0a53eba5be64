"""Killed by SIGKILL under a real worker, and equal at the end, byte for byte, to what nobody killed."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support.killed_tensorflow import Undisturbed, finish, start
from support.workers import Machine

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    """Not tmp_path: a socket's path may have 107 bytes."""
    made = Machine(Path(tempfile.mkdtemp(prefix="orch-")), monkeypatch)
    yield made
    made.close()


def test_a_killed_run_ends_with_the_same_bytes(machine, tmp_path):
    calm = Undisturbed(tmp_path / "calm", "train_tf.py", {})
    running = start(machine, "train_tf.py", 5, {"KILL_AT": "7,26"})
    found = finish(machine, running)
    assert [event["step"] for event in running.told("Restored")] == [5, 25]
    assert found == calm.end()
    assert "not exact" not in running.notes()
