"""From the events of a real job to a golden timeline: `orch events JOB -o json | python -m scenarios.record "# What."`.

Names of machines, process ids and what stands beside an event for people are left out; everything that the lifecycle
decides with stays. Run from the folder tests/.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from orch.model.events import EVENTS
from scenarios.timeline import replay, step

LEFT_OUT = {"pid", "node", "seed", "traceback"}
JOB = "digits-x1"
_HOME = re.compile(r"/tmp/orch-\w+")
"""Of a test's server."""


def timeline(events: Sequence[Mapping[str, Any]], comment: str) -> str:
    """Documents of the API, oldest first, as a timeline with its decisions."""
    inputs = [_HOME.sub("/orch-home", line) for line in _inputs(events)]
    return replay("\n".join([comment, "", *inputs]))


def decisions(events: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[str]]:
    """Of a real job: what was decided then, and what is decided now."""
    job, now = None, []
    for line in _inputs(events):
        job, _ = step(job, line)
        now.append(job.story[-1].decision)
    return [event["decision"] or "" for event in events], now


def _inputs(events: Sequence[Mapping[str, Any]]) -> list[str]:
    from orch.control.views import parse_time_us

    start_us = parse_time_us(events[0]["time"])
    lines, latest_us = [], 0
    for event in events:
        latest_us = max(latest_us, parse_time_us(event["time"]) - start_us)
        known = {field.name: field.default for field in fields(EVENTS[event["type"]])}
        data = {
            name: value
            for name, value in event["data"].items()
            if name in known and name not in LEFT_OUT and value != known[name]
        }
        if "job" in data:
            data["job"] = JOB
        lines.append(f"{latest_us / 1e6:.3f} {json.dumps({'type': event['type'], **data})}")
    return lines


if __name__ == "__main__":
    print(timeline(json.load(sys.stdin)["events"], sys.argv[1]), end="")
