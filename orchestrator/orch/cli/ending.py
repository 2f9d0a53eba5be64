"""`orch cancel` and `orch wait`: the end of a job."""

from typing import Annotated, Any

import typer

from orch.cli import output
from orch.cli.app import INTERRUPTED, Cluster, Job, Output, verb
from orch.cli.connect import connected
from orch.cli.output import Format
from orch.model.errors import WrongUse

Document = dict[str, Any]

CANCEL_LIMIT_S = 300.0
"""A grace period and the closing fit in it many times over; the job is still ended if it takes longer."""


def register(app: typer.Typer) -> None:
    verb(app, "orch cancel digits-x7k2m", "orch cancel digits-x7k2m --now")(cancel)
    verb(app, "orch wait digits-x7k2m && echo done", "orch wait digits-x7k2m --timeout 2h")(wait)


def cancel(
    job: Job,
    now: Annotated[bool, typer.Option("--now", help="Without the grace period: killed at once.")] = False,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Ask, and do not wait for the end.")] = False,
    output_format: Output = Format.TABLE,
    cluster: Cluster = None,
) -> None:
    """Ends a job; returns when nothing of it is left.

    Checkpoints and logs stay.
    """
    from orch.cli.following import ENDED, wait_over

    with connected(cluster) as client, output.progress() as shown:
        found = client.cancel(job, now=now)
        if not no_wait and found["state"] not in ENDED:
            shown.show(f"waiting until nothing of {job} is left")
            try:
                found = wait_over(client, job, CANCEL_LIMIT_S, blocked_ends=False)
            except KeyboardInterrupt:
                shown.close()
                output.say(f"\norch: {job} is still being cancelled; `orch status {job}` shows how it goes")
                raise typer.Exit(INTERRUPTED) from None
    _show(found, output_format)


def wait(
    job: Job,
    timeout: Annotated[
        str | None, typer.Option("--timeout", metavar="DURATION", help="Such as 90s, 10m, 1h30m.")
    ] = None,
    output_format: Output = Format.TABLE,
    cluster: Cluster = None,
) -> None:
    """Waits until a job is over.

    Exit code: 0 succeeded, 1 failed, 3 cancelled, 6 time-out, 7 blocked.
    """
    from orch.cli.following import exit_code, keeps_running, wait_over

    timeout_s = None if timeout is None else _duration_s(timeout)
    with connected(cluster) as client:
        try:
            found = wait_over(client, job, timeout_s)
        except KeyboardInterrupt:
            output.say(keeps_running(job))
            raise typer.Exit(INTERRUPTED) from None
    _show(found, output_format)
    raise typer.Exit(exit_code(found))


def _duration_s(text: str) -> float:
    from orch.model.units import DURATION_ALLOWED, UnitError, parse_duration_s

    try:
        return parse_duration_s(float(text) if text.replace(".", "", 1).isdigit() else text)
    except UnitError as error:
        raise WrongUse(f"--timeout: {text!r} {error}; allowed: {DURATION_ALLOWED}") from None


def _show(job: Document, output_format: Format) -> None:
    from orch.cli.following import outcome_sentence

    if output_format is Format.JSON:
        output.write_json({"version": output.VERSION, "jobs": [job]})
    else:
        output.write_line(outcome_sentence(job))
