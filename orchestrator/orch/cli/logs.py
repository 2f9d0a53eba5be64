"""`orch logs` and `orch fetch`: what a job wrote."""

from pathlib import Path
from typing import Annotated

import typer

from orch.cli import output
from orch.cli.app import INTERRUPTED, Cluster, Job, Output, verb
from orch.cli.connect import connected
from orch.cli.output import Format

TAIL_LINES_MAX = 1_000_000


def register(app: typer.Typer) -> None:
    verb(
        app,
        "orch logs digits-x7k2m",
        "orch logs -f digits-x7k2m",
        "orch logs digits-x7k2m --tail 100 --timestamps",
        "orch logs digits-x7k2m --attempt 1 --rank 0",
    )(logs)
    verb(app, "orch fetch digits-x7k2m", "orch fetch digits-x7k2m --to results/")(fetch)


def logs(
    job: Job,
    *,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until the job is over. Ctrl-C leaves it running.")
    ] = False,
    rank: Annotated[int, typer.Option("--rank", metavar="N", min=0, help="Of which worker.")] = 0,
    attempt: Annotated[
        int | None,
        typer.Option("--attempt", metavar="N", min=1, help="Of which attempt alone; without it, of all."),
    ] = None,
    tail: Annotated[
        int | None,
        typer.Option("--tail", metavar="N", min=0, max=TAIL_LINES_MAX, help="Only the last lines."),
    ] = None,
    timestamps: Annotated[
        bool, typer.Option("--timestamps", "-t", help="When each line was seen (UTC).")
    ] = False,
    output_format: Output = Format.TABLE,
    cluster: Cluster = None,
) -> None:
    """What the command wrote to stdout and stderr. `-o json` prints one document per line."""
    from orch.cli.following import LogFollower, LogView, keeps_running

    view = LogView(rank, attempt, tail, timestamps, output_format is Format.JSON)
    with connected(cluster) as client:
        if not follow:
            parts = client.follow_logs(
                job,
                rank=rank,
                attempt=attempt,
                tail=tail,
                timestamps=timestamps or view.as_json,
                follow=False,
            )
            for part in parts:
                view.show(part)
            return
        try:
            LogFollower(client, job, view).run()
        except KeyboardInterrupt:
            output.say(keeps_running(job))
            raise typer.Exit(INTERRUPTED) from None


def fetch(
    job: Job,
    to: Annotated[
        Path | None,
        typer.Option("--to", metavar="DIR", help="Where to; without it, a folder named as the job."),
    ] = None,
    output_format: Output = Format.TABLE,
    cluster: Cluster = None,
) -> None:
    """Brings back the files that `outputs` names.

    Files of the same path are replaced.
    """
    from orch.cli.fetching import fetch_outputs
    from orch.cli.humans import count
    from orch.model.units import describe_size

    folder = to or Path(job)
    with connected(cluster) as client, output.progress() as shown:
        files = fetch_outputs(client, job, folder, shown)
    if output_format is Format.JSON:
        found = [{"path": file.path, "size_bytes": file.size_bytes} for file in files]
        document = {"version": output.VERSION, "job": job, "folder": str(folder.absolute()), "files": found}
        output.write_json(document)
        return
    for file in files:
        output.write_line(str(folder / file.path))
    size = describe_size(sum(file.size_bytes for file in files))
    output.say(f"orch: {count(len(files), 'file')}, {size}, in {folder}")
