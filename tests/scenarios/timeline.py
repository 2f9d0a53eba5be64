"""Golden timelines: what the lifecycle decides for a list of events, in a form that people can read.

A timeline is a text: comment lines start with ``#``; a line with a time (seconds) and an event as JSON (the
form of `event_to_dict`) is input; indented lines are output: the state with the decision, then ``→`` and each
command.
A timeline from a real run is written the same way, its events taken from the store.
"""

from __future__ import annotations

import json
from typing import Any

from orch.control.lifecycle import advance, begin
from orch.control.lifecycle_invariants import validate
from orch.model.commands import Command, command_to_dict
from orch.model.events import Submitted, event_from_dict
from orch.model.states import JobState

START_US = 1_700_000_000_000_000


def replay(text: str) -> str:
    """The timeline with its output as it comes out now."""
    job: JobState | None = None
    lines: list[str] = []
    for line in text.splitlines():
        if line.startswith("#") or not line.strip():
            lines.append(line)
        elif not line.startswith(" "):
            job, commands = step(job, line)
            lines += [line, f"    {job.state} {job.generation}: {job.story[-1].decision}"]
            lines += [f"    → {_command(command)}" for command in commands]
    assert job is not None
    return "\n".join([*lines, *_account(job)]) + "\n"


def step(job: JobState | None, line: str) -> tuple[JobState, list[Command]]:
    """What one line of input does to the job (None before the first)."""
    time_s, _, document = line.partition(" ")
    event = event_from_dict(json.loads(document))
    now_us = START_US + round(float(time_s) * 1_000_000)
    if isinstance(event, Submitted):
        job, commands = begin(event, now_us)
    else:
        assert job is not None, "a timeline starts with Submitted"
        job, commands = advance(job, event, now_us)
    validate(job)
    return JobState.from_dict(json.loads(json.dumps(job.to_dict()))), commands


def _command(command: Command) -> str:
    document = command_to_dict(command)
    document.pop("policy", None)
    for name in ("not_before_us", "deadline_us"):
        if document.get(name) is not None:
            document[name.removesuffix("_us")] = f"{(document.pop(name) - START_US) / 1_000_000:.3f}s"
    fields = ", ".join(
        f"{name}={value}" for name, value in document.items() if name != "type" and value is not None
    )
    return f"{document['type']}({fields})"


def _account(job: JobState) -> list[str]:
    """How it stands at the end; indented, so that it is made anew."""
    charges: dict[str, Any] = {
        name: job.charges.get(name, 0) for name in ("failures", "hangs", "preemptions", "given_back")
    }
    spent = {state: f"{us / 1_000_000:.3f}s" for state, us in job.spent_us.items() if us}
    books = {bucket: f"{us / 1_000_000:.3f}s" for bucket, us in job.books["us"].items() if us}
    facts = [
        f"reason: {job.reason}",
        f"step {job.step}, charges {charges}",
        f"time {spent}",
        f"books {books}",
    ]
    if job.inexact:
        facts.append(f"inexact: {job.inexact}")
    if job.exit_code is not None:
        facts.append(f"exit code {job.exit_code}")
    return [f"    = {fact}" for fact in facts]
