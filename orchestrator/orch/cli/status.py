"""`orch status` and `orch events`: how jobs stand, and why."""

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orch.cli import output
from orch.cli.app import Cluster, Job, OptionalJob, Output, verb
from orch.cli.connect import connected
from orch.cli.output import Format

if TYPE_CHECKING:
    from orch.api.client import Client

WATCH_EVERY_S = 1.0
JOBS_SHOWN_MAX = 50
EVENT_COLUMNS = ("SEQ", "TIME", "EVENT")

Document = dict[str, Any]


def register(app: typer.Typer) -> None:
    verb(
        app,
        "orch status                        # all jobs, newest first",
        "orch status digits-x7k2m           # one job: attempts, restarts, lost work, checkpoints",
        "orch status --watch",
        "orch status digits-x7k2m -o json",
    )(status)
    verb(app, "orch events digits-x7k2m", "orch events digits-x7k2m -f -o json")(events)


def status(
    job: OptionalJob = None,
    *,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Keep it up to date.")] = False,
    show_all: Annotated[
        bool, typer.Option("--all", "-a", help=f"Every job, not the newest {JOBS_SHOWN_MAX} alone.")
    ] = False,
    output_format: Output = Format.TABLE,
    cluster: Cluster = None,
) -> None:
    """How jobs stand.

    State, progress, checkpoints, restarts and their causes.
    """
    limit = None if show_all else JOBS_SHOWN_MAX
    with connected(cluster) as client:
        if watch:
            _watch(client, job, limit, output_format)
        else:
            _show(_look(client, job, limit), one=job is not None, output_format=output_format)


def _look(client: "Client", job: str | None, limit: int | None) -> list[Document]:
    return client.jobs(limit=limit) if job is None else [client.job(job)]


def _show(jobs: list[Document], *, one: bool, output_format: Format) -> None:
    if output_format is Format.JSON:
        output.write_json({"version": output.VERSION, "jobs": jobs})
    elif not jobs:
        output.say("no jobs yet; `orch submit job.yaml` starts one")
    else:
        console = output.console()
        console.print(_render(jobs, console.width, one=one))


def _render(jobs: list[Document], width: int, *, one: bool) -> Any:
    from orch.cli import tables

    return tables.job_view(jobs[0]) if one else tables.jobs_table(jobs, width)


def _watch(client: "Client", job: str | None, limit: int | None, output_format: Format) -> None:
    """Until the job is over, or Ctrl-C. No terminal: a line for each change instead of a moving table."""
    import sys

    if output_format is Format.JSON or not output.is_terminal(sys.stdout):
        _watch_lines(client, job, limit, output_format)
        return
    from rich.live import Live

    from orch.cli.following import ENDED

    console = output.console()
    with Live(console=console, auto_refresh=False) as live:
        while True:
            jobs = _look(client, job, limit)
            shown = _render(jobs, console.width, one=job is not None) if jobs else "no jobs yet"
            live.update(shown, refresh=True)
            if job is not None and jobs[0]["state"] in ENDED:
                return
            time.sleep(WATCH_EVERY_S)


def _watch_lines(client: "Client", job: str | None, limit: int | None, output_format: Format) -> None:
    from orch.cli.following import ENDED, outcome_sentence

    seen: dict[str, Any] = {}
    while True:
        jobs = _look(client, job, limit)
        for one in reversed(jobs):
            # Ages and rates change by themselves; a line for each of those would tell nothing.
            mark = [one.get(key) for key in ("state", "reason", "step", "attempt", "restarts")]
            if seen.get(one["id"]) == mark:
                continue
            seen[one["id"]] = mark
            if output_format is Format.JSON:
                output.write_json_line({"version": output.VERSION, "jobs": [one]})
            else:
                output.write_line(outcome_sentence(one))
        if job is not None and jobs[0]["state"] in ENDED:
            return
        time.sleep(WATCH_EVERY_S)


def events(
    job: Job,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job is over.")] = False,
    output_format: Output = Format.TABLE,
    cluster: Cluster = None,
) -> None:
    """What happened to a job.

    Each event with how it was seen and what was decided.
    """
    with connected(cluster) as client:
        if follow:
            for event in client.follow_events(job):
                if output_format is Format.JSON:
                    output.write_json_line(event)
                else:
                    output.write_line(_event_line(event))
            return
        found = _all_events(client, job)
        if output_format is Format.JSON:
            output.write_json({"version": output.VERSION, "job": job, "events": found})
            return
        for event in found:
            output.write_line(_event_line(event))


def _all_events(client: "Client", job: str) -> list[Document]:
    found: list[Document] = []
    while True:
        page = client.events(job, after=found[-1]["seq"] if found else 0)
        if not page.events:
            return found
        found += page.events


def _event_line(event: Document) -> str:
    from orch.cli.humans import clock
    from orch.cli.story import told

    return f"{event['seq']:>6}  {clock(event['time'], with_ms=True)}  {told(event)}"
