"""`orch goodput`: where a job's time went, and what each incident cost."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import typer

from orch.cli import output
from orch.cli.app import Cluster, Job, Output, verb
from orch.cli.connect import connected
from orch.cli.output import Format

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

Document = dict[str, Any]

BUCKETS = {
    "queued_s": "waited for its resources",
    "starting_s": "from its resources to the first step",
    "restoring_s": "loaded its state",
    "productive_s": "did steps that count",
    "saving_s": "training waited for a snapshot",
    "lost_s": "did steps that had to be done again",
    "detecting_s": "had died or stood still, and nobody knew",
    "restarting_s": "from a failure to the first new step",
    "stopping_s": "wrote its last state and was cleared away",
    "blocked_s": "waited for a person",
}
"""In the order in which a job meets them; a bucket that a newer server has comes last, without words."""


def register(app: typer.Typer) -> None:
    verb(app, "orch goodput digits-x7k2m", "orch goodput digits-x7k2m -o json")(goodput)


def goodput(job: Job, output_format: Output = Format.TABLE, cluster: Cluster = None) -> None:
    """Where a job's time went.

    Buckets that sum to the time from submit to its end (or to now), and the cost of each incident.
    """
    with connected(cluster) as client:
        found = client.job(job)
    document = {
        **{name: found.get(name) for name in ("id", "state", "submitted", "ended", "goodput", "ledger")},
        "incidents": incidents(found),
    }
    if output_format is Format.JSON:
        output.write_json({"version": output.VERSION, "jobs": [document]})
    else:
        output.console().print(view(document))


def incidents(job: Document) -> list[Document]:
    """Every start that a failure made necessary, oldest first, with what it cost."""
    starts = [
        {"generation": f"{attempt['attempt']}.{start.get('restart', 0)}", **start}
        for attempt in job.get("attempts") or []
        for start in attempt.get("restarts") or []
    ]
    kept = ("generation", "cause", "seen", "decision", "charged_to", "restored_step", "restored_from")
    costs = ("lost_steps", "lost_s", "recovery_s")
    return [
        {"time": before.get("ended"), **{name: start.get(name) for name in (*kept, *costs)}}
        for before, start in itertools.pairwise(starts)
    ]


def view(document: Document) -> Group:
    from rich.console import Group
    from rich.text import Text

    from orch.cli.humans import between_s, percent, span

    total_s = between_s(document.get("submitted"), document.get("ended"))
    until = "its end" if document.get("ended") else "now"
    title = f"{document['id']}: goodput {percent(document.get('goodput'))}, {span(total_s)} from submit to {until}"
    parts: list[Any] = [Text(title, style="bold"), _ledger(document.get("ledger") or {})]
    if document["incidents"]:
        parts += [Text(), Text("Incidents", style="bold"), _incidents(document["incidents"])]
    return Group(*parts)


def _ledger(ledger: Document) -> Table:
    from rich.table import Table

    from orch.cli.humans import percent, span

    table = Table.grid(padding=(0, 2, 0, 0))
    for justify in ("left", "right", "right", "left"):
        table.add_column(justify=justify)
    total_s = sum(ledger.values())
    for name in (*BUCKETS, *(name for name in ledger if name not in BUCKETS)):
        spent_s = ledger.get(name)
        if spent_s:
            share = percent(spent_s / total_s)
            table.add_row(name.removesuffix("_s"), span(spent_s), share, BUCKETS.get(name, ""))
    return table


def _incidents(found: list[Document]) -> Table:
    from rich.table import Table

    from orch.cli.humans import clock
    from orch.cli.story import incident

    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for one in found:
        table.add_row(clock(one.get("time")), incident(one))
    return table
