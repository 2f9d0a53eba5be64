"""`orch status` and `orch events`: how jobs stand, and why."""

import contextlib
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orch.cli import output
from orch.cli.app import Cluster, Job, OptionalJob, Output, verb
from orch.cli.connect import connected
from orch.cli.interrupting import heard
from orch.cli.output import Format
from orch.model.errors import NoServer

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
    with contextlib.ExitStack() as stack:
        look = _Look(job, limit, cluster, stack)
        if watch:
            _watch(look, output_format)
        else:
            _show(look.now(), one=look.one, output_format=output_format)


class _Look:
    """Asks the server how things stand. `stack` holds the connection, which is made anew after a gap."""

    def __init__(
        self, job: str | None, limit: int | None, cluster: str | None, stack: contextlib.ExitStack
    ) -> None:
        self._job, self._limit, self._cluster = job, limit, cluster
        self._stack = stack
        self._client: Client | None = None
        self.one = job is not None

    def now(self) -> list[Document]:
        if self._client is None:
            self._client = self._stack.enter_context(connected(self._cluster))
        try:
            return (
                self._client.jobs(limit=self._limit) if self._job is None else [self._client.job(self._job)]
            )
        except NoServer:
            self._client = None  # it may come back at another address
            self._stack.close()
            raise

    def again(self) -> list[Document]:
        """After a pause. A server that is being restarted is waited for, for a while."""
        from orch.api.client import FOLLOW_PATIENCE_S

        deadline, told = time.monotonic() + FOLLOW_PATIENCE_S, False
        while True:
            time.sleep(WATCH_EVERY_S)
            try:
                return self.now()
            except NoServer as error:
                if time.monotonic() > deadline:
                    raise
                if not told:
                    output.say(f"orch: {error.message}; waiting for it")
                told = True


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


@heard()
def _watch(look: _Look, output_format: Format) -> None:
    """Until the job is over, or Ctrl-C. No terminal: a line for each change instead of a moving table."""
    import sys

    if output_format is Format.JSON or not output.is_terminal(sys.stdout):
        _watch_lines(look, output_format)
        return
    from rich.live import Live

    from orch.cli.following import ENDED

    console = output.console()
    jobs = look.now()
    with Live(console=console, auto_refresh=False) as live:
        while True:
            shown = _render(jobs, console.width, one=look.one) if jobs else "no jobs yet"
            live.update(shown, refresh=True)
            if look.one and jobs[0]["state"] in ENDED:
                return
            jobs = look.again()


def _watch_lines(look: _Look, output_format: Format) -> None:
    from orch.cli.following import ENDED, outcome_sentence

    seen: dict[str, Any] = {}
    jobs = look.now()
    while True:
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
        if look.one and jobs[0]["state"] in ENDED:
            return
        jobs = look.again()


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
            _follow_events(client, job, output_format)
            return
        found = _all_events(client, job)
        if output_format is Format.JSON:
            output.write_json({"version": output.VERSION, "job": job, "events": found})
            return
        for event in found:
            output.write_line(_event_line(event))


@heard()
def _follow_events(client: "Client", job: str, output_format: Format) -> None:
    for event in client.follow_events(job):
        if output_format is Format.JSON:
            output.write_json_line(event)
        else:
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
