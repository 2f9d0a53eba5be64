"""`orch server start|stop|status`: the control plane by hand."""

from typing import Annotated, Any

import typer

from orch.cli import output
from orch.cli.app import Cluster, Output, make, verb
from orch.cli.connect import connected, find_target
from orch.cli.output import Format
from orch.model.errors import WrongUse

Document = dict[str, Any]


def register(app: typer.Typer) -> None:
    group = make(
        "The server by hand; `orch submit` starts it when it is needed.",
        "orch server start",
        "orch server status",
        "orch server stop",
    )
    verb(
        group,
        "orch server start",
        "orch server start --cpus 8 --gpus 1",
        "orch server start --cluster 10.0.0.5:6379",
    )(start)
    verb(group, "orch server stop")(stop)
    verb(group, "orch server status", "orch server status -o json")(status)
    app.add_typer(group, name="server")


def start(
    cpus: Annotated[
        int | None, typer.Option("--cpus", metavar="N", min=1, help="CPU cores that Ray may give away.")
    ] = None,
    gpus: Annotated[
        int | None, typer.Option("--gpus", metavar="N", min=0, help="GPUs that Ray may give away.")
    ] = None,
    output_format: Output = Format.TABLE,
    cluster: Cluster = None,
) -> None:
    """Starts the server.

    Ray on this machine, or on --cluster; unfinished jobs go on.
    """
    from orch.cli.launch import start_server

    target = find_target(cluster)
    if not target.can_start:
        raise WrongUse(f"the server at {target.address} is not started from here; do it on that machine")
    if target.kind == "ray" and (cpus is not None or gpus is not None):
        raise WrongUse(f"--cpus and --gpus are for a Ray of this machine; {target.address} runs already")
    with output.progress() as shown:
        found = start_server(target, shown, cpus=cpus, gpus=gpus)
    if output_format is Format.JSON:
        output.write_json({"version": output.VERSION, "server": found})
    else:
        output.write_line(f"the server answers at {found['url']}")


def stop(output_format: Output = Format.TABLE, cluster: Cluster = None) -> None:
    """Stops the server.

    Running jobs save what they hold; the Ray that it started is stopped too.
    Unfinished jobs go on at the next start.
    """
    from orch.cli.launch import stop_server

    target = find_target(cluster)
    with output.progress() as shown:
        if target.can_start:
            found = stop_server(target.home, shown)
        else:
            shown.show("stopping the server")
            with connected(cluster) as client:
                found = client.stop_server()
    if output_format is Format.JSON:
        output.write_json({"version": output.VERSION, "server": found})
    else:
        output.write_line("the server is stopped; unfinished jobs go on at the next start")


def status(output_format: Output = Format.TABLE, cluster: Cluster = None) -> None:
    """Whether the server runs, where, and on which machines."""
    with connected(cluster) as client:
        found = {"url": client.url, **client.server()}
    if output_format is Format.JSON:
        output.write_json({"version": output.VERSION, "server": found})
        return
    from orch.cli import tables

    output.console().print(tables.server_view(found))
