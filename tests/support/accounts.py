"""What holds of every job that is over, whatever happened to it: its books sum, and its story replays."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orch.control.views import parse_time_us
from scenarios.record import decisions, timeline

if TYPE_CHECKING:
    from support.server import Server

SUM_SHARE = 0.01
RECORD_VARIABLE = "ORCH_RECORD_TIMELINES"
"""A folder (tests/scenarios/recorded): the first timeline of each name is written there."""


def assert_accounts(server: Server, job: str) -> dict[str, Any]:
    """The buckets of `orch goodput` sum to the time from submit to end, within a percent; the events, replayed through
    the lifecycle, lead to the decisions that were made. Returns the detail document.
    """
    detail = server.client().job(job)
    whole_s = (parse_time_us(detail["ended"]) - parse_time_us(detail["submitted"])) / 1e6
    booked_s = sum(detail["ledger"].values())
    assert abs(booked_s - whole_s) <= SUM_SHARE * whole_s, (
        f"{job}: {booked_s} s booked of {whole_s}: {detail['ledger']}"
    )
    assert min(detail["ledger"].values()) >= 0, detail["ledger"]
    events = list(server.client().follow_events(job))
    if "recovered_from" not in events[0]["data"]:  # what it had been before is not among its events
        then, now = decisions(events)
        other = [pair for pair in zip(then, now, strict=True) if pair[0] != pair[1]]
        assert not other, f"{job}: a timeline of real events replays with other decisions: {other}"
    return detail


def keep_timeline(server: Server, job: str, name: str, what: str) -> None:
    """As a golden timeline, where they are being recorded; nothing otherwise."""
    folder = os.environ.get(RECORD_VARIABLE)
    if folder is None:
        return
    path = Path(folder) / f"{name}.txt"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(timeline(list(server.client().follow_events(job)), f"# From a real run: {what}"))
