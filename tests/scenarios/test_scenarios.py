"""Every golden timeline comes out as it is written.

`ORCH_REWRITE_SCENARIOS=1` writes them anew: read the diff.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from scenarios.timeline import replay

TIMELINES = sorted(Path(__file__).parent.glob("*.txt"))
RECORDED = sorted(Path(__file__).parent.glob("recorded/*.txt"))
"""Of real kills, by `ORCH_RECORD_TIMELINES=tests/scenarios/recorded python -m tests.soak rows nodes transitions`."""


@pytest.mark.parametrize("path", TIMELINES + RECORDED, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_decisions_are_those_of_the_golden_timeline(path):
    written = path.read_text()
    now = replay(written)
    if os.environ.get("ORCH_REWRITE_SCENARIOS"):
        path.write_text(now)
    assert now == written


def test_every_row_of_the_page_of_failures_names_a_timeline():
    """And every timeline of a failure stands in a row."""
    page = Path(__file__).parents[2].joinpath("docs", "failures.md").read_text()
    named = set(re.findall(r"scenarios/([a-z_]+)\.txt", page))
    there = {path.stem for path in TIMELINES}
    assert named - there == set()
    assert there - named == NOT_FAILURES


def test_every_row_of_the_page_of_failures_was_recorded_from_a_real_run():
    """Beside the timelines that were written by hand, each with the shortest story of its row."""
    page = Path(__file__).parents[2].joinpath("docs", "failures.md").read_text()
    recorded = {path.stem for path in RECORDED}
    rows = [set(re.findall(r"scenarios/([a-z_]+)\.txt", line)) for line in page.splitlines()]
    under = [{UNDER_ANOTHER_NAME.get(name, name) for name in row} for row in rows if row]
    assert [row for row in under if not row & recorded] == [{name} for name in NEVER_RECORDED]


UNDER_ANOTHER_NAME = {
    "machine_lost": "node_killed",
    "preempted_by_ray": "node_drained",
    "preempted_with_notice": "node_terminated",
    "preempted": "cluster_silent",
}
NEVER_RECORDED = ["late_and_repeated"]
"""What no real run does on purpose; the simulation does it all the time."""
NOT_FAILURES = {
    "cancelled",
    "cancelled_in_the_queue",
    "cancel_hangs",
    "finished_while_cancelled",
    "resumed",
    "resumed_at_a_step",
    "turn_lost",
}
"""What people and the queue do."""
