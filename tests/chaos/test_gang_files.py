"""A script for torchrun that knows nothing of orch, on two ranks, with its own snapshot kept safe: each rank is killed,
and it ends with the weights that it would have had.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from support.gang_jobs import GangVictim
from support.recovery import kill, starts
from support.server import Server

pytestmark = pytest.mark.chaos

FOLDER = Path(__file__).parent / "tutorial_jobs"


def test_each_rank_of_a_script_for_torchrun_is_killed(server: Server) -> None:
    calm = GangVictim(server, folder=FOLDER)
    victim = GangVictim(server, folder=FOLDER)
    for restart, rank in enumerate((1, 0), 1):
        generation = f"000001.{restart:06d}"
        victim.wait_event("CheckpointCommitted", lambda data, at=generation: data["generation"] == at)
        assert kill(victim.newest("ProcessStarted", rank)["pid"])
    detail = victim.finish()
    assert detail["attempt"] == 1, "restarted in place"
    assert [start["restored_from"] for start in starts(detail)] == [None, "disk", "disk"]
    assert "rank 1: killed by SIGKILL" in starts(detail)[1]["cause"]
    assert "rank 0: killed by SIGKILL" in starts(detail)[2]["cause"]
    log = server.cli("logs", victim.id, "--rank", "1", "--attempt", "1").stdout
    assert "Resuming training from snapshot at Epoch" in log, "every rank finds the snapshot in its place"
    calm.finish()
    assert victim.final_bytes() == calm.final_bytes()
    victim.assert_nothing_left()
