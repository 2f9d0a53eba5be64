"""Every golden timeline comes out as it is written.

`ORCH_REWRITE_SCENARIOS=1` writes them anew: read the diff.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from scenarios.timeline import replay

TIMELINES = sorted(Path(__file__).parent.glob("*.txt"))


@pytest.mark.parametrize("path", TIMELINES, ids=lambda path: path.stem)
def test_decisions_are_those_of_the_golden_timeline(path):
    written = path.read_text()
    now = replay(written)
    if os.environ.get("ORCH_REWRITE_SCENARIOS"):
        path.write_text(now)
    assert now == written


def test_there_is_a_timeline_for_every_failure_of_the_table():
    assert {path.stem for path in TIMELINES} >= {
        "process_killed",
        "agent_killed",
        "machine_lost",
        "cluster_lost",
        "controller_killed",
        "crash_loop",
        "import_error",
        "preempted",
        "budget_used_up",
        "nothing_restorable",
        "cancelled",
    }
