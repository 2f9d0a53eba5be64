"""`orch preempt`: a job gives up its place and is placed again."""

import time
from typing import Annotated, Any

import typer

from orch.cli import output
from orch.cli.app import INTERRUPTED, Cluster, Job, Output, verb
from orch.cli.connect import connected
from orch.cli.output import Format
from orch.model.errors import TimedOut, WrongUse

Document = dict[str, Any]

PLACED = frozenset({"STARTING", "RUNNING", "RECOVERING"})
LEAVE_MARGIN_S = 90.0
"""Beyond the grace period: the last snapshot on its way to slow storage, and the gang's removal."""
POLL_S = 0.1


def register(app: typer.Typer) -> None:
    verb(app, "orch preempt digits-x7k2m", "orch preempt digits-x7k2m --grace 2m")(preempt)


def preempt(
    job: Job,
    grace: Annotated[
        str, typer.Option("--grace", metavar="DURATION", help="Until then it must have left: 30s, 2m.")
    ] = "30s",
    no_wait: Annotated[
        bool, typer.Option("--no-wait", help="Ask, and do not wait until it has left.")
    ] = False,
    output_format: Output = Format.TABLE,
    cluster: Cluster = None,
) -> None:
    """Has a job save its state, leave its place and queue again.

    As when its machine is announced to go away: nothing is lost, and other jobs of a higher priority go first.
    """
    grace_s = duration_s("--grace", grace)
    with connected(cluster) as client, output.progress() as shown:
        before = client.job(job)["attempt"]
        found = client.preempt(job, grace_s=grace_s, attempt=before)
        if not no_wait:
            shown.show(f"waiting until {job} has left its place")
            try:
                found = _until_left(client, job, before, grace_s + LEAVE_MARGIN_S)
            except KeyboardInterrupt:
                shown.close()
                output.say(f"\norch: {job} leaves all the same; `orch status {job}` shows how it goes")
                raise typer.Exit(INTERRUPTED) from None
    if output_format is Format.JSON:
        output.write_json({"version": output.VERSION, "jobs": [found]})
    else:
        output.write_line(f"{job} is {found['state']}" + (f": {found['reason']}" if found["reason"] else ""))


def _until_left(client: Any, job: str, attempt: int, limit_s: float) -> Document:
    """Until its place is given back, or the job has ended instead."""
    deadline = time.monotonic() + limit_s
    while True:
        found: Document = client.job(job)
        if found["state"] not in PLACED or found["attempt"] > attempt:
            return found
        if time.monotonic() > deadline:
            raise TimedOut(f"{job} has not left its place within {limit_s:g} s; `orch events {job}` says why")
        time.sleep(POLL_S)


def duration_s(option: str, text: str) -> float:
    from orch.model.units import DURATION_ALLOWED, UnitError, parse_duration_s

    try:
        return parse_duration_s(float(text) if text.replace(".", "", 1).isdigit() else text)
    except UnitError as error:
        raise WrongUse(f"{option}: {text!r} {error}; allowed: {DURATION_ALLOWED}") from None
