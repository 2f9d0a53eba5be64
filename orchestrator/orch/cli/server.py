"""`orch server …`: the control plane by hand."""

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from orch.cli import output
from orch.cli.app import Cluster, Output, make, verb
from orch.cli.connect import Target, connected, find_target
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
        "orch server start --listen 0.0.0.0:8443 --tls-cert server.pem --tls-key server.key",
    )(start)
    verb(
        group,
        "orch server run",
        "orch server run --cluster 127.0.0.1:6379 --ray 'ray start --head --port=6379 --block'",
    )(run)
    verb(group, "orch server restart", "orch server restart --new-token")(restart)
    verb(group, "orch server stop")(stop)
    verb(group, "orch server status", "orch server status -o json")(status)
    verb(group, 'eval "$(orch server environment)"; ray start --address=10.0.0.5:6379 --block')(environment)
    verb(group, "orch server store", "orch server store --to 1")(store)
    app.add_typer(group, name="server")


Cpus = Annotated[
    int | None, typer.Option("--cpus", metavar="N", min=1, help="CPU cores that Ray may give away.")
]
Gpus = Annotated[int | None, typer.Option("--gpus", metavar="N", min=0, help="GPUs that Ray may give away.")]

ListenAt = Annotated[
    str | None,
    typer.Option("--listen", metavar="ADDRESS:PORT", help="Listen here too, for other machines; needs TLS."),
]
TlsCert = Annotated[
    str | None, typer.Option(metavar="FILE", help="Certificate and its chain, PEM, for --listen.")
]
TlsKey = Annotated[str | None, typer.Option(metavar="FILE", help="Its private key, PEM.")]
ListenName = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME", help="A name under which --listen is reached. May be repeated."),
]
InsecureListen = Annotated[
    bool,
    typer.Option("--insecure-listen", help="Without TLS: the token crosses the network in the open."),
]


def start(
    cpus: Cpus = None,
    gpus: Gpus = None,
    listen: ListenAt = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    listen_name: ListenName = None,
    insecure_listen: InsecureListen = False,
    output_format: Output = Format.TABLE,
    cluster: Cluster = None,
) -> None:
    """Starts the server.

    Ray on this machine, or on --cluster; unfinished jobs go on. It answers on loopback, and with --listen for other
    machines too.
    """
    from orch.cli.launch import start_server

    target = find_target(cluster)
    _refuse_amounts(target, cpus, gpus)
    if not target.can_start:
        raise WrongUse(f"the server at {target.address} is not started from here; do it on that machine")
    place = _listen(listen, tls_cert, tls_key, listen_name or [], insecure=insecure_listen)
    with output.progress() as shown:
        found = start_server(target, shown, cpus=cpus, gpus=gpus, listen=place)
    if place and "listens" not in found:
        output.say("orch: the server ran already; where it listens is changed by stopping and starting it")
    if output_format is Format.JSON:
        output.write_json({"version": output.VERSION, "server": found})
    else:
        more = f", and for other machines at {found['listens']}" if "listens" in found else ""
        output.write_line(f"the server answers at {found['url']}{more}")


def _listen(
    address: str | None, certificate: str | None, key: str | None, names: list[str], *, insecure: bool
) -> Document | None:
    """As `listen` of the config file has it. WrongUse, before anything is started."""
    from orch.model.listening import listen_from

    given = {"certificate": certificate, "key": key, "names": names, "insecure": insecure}
    if address is None:
        if any(given.values()):
            raise WrongUse(
                "--tls-cert, --tls-key, --listen-name and --insecure-listen are for --listen ADDRESS:PORT"
            )
        return None
    try:
        return listen_from({"address": address, **given}, Path.cwd()).to_dict()
    except ValueError as error:
        raise WrongUse(f"--listen: {error}") from None


def _refuse_amounts(target: Target, cpus: int | None, gpus: int | None) -> None:
    if target.kind == "ray" and (cpus is not None or gpus is not None):
        raise WrongUse(f"--cpus and --gpus are for a Ray of this machine; {target.address} runs already")


def run(
    cpus: Cpus = None,
    gpus: Gpus = None,
    ray: Annotated[
        str | None,
        typer.Option(
            "--ray",
            metavar="COMMAND",
            help="Starts the head of --cluster and stays, as `ray start --head --block …` does; it ends with this.",
        ),
    ] = None,
    listen: ListenAt = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    listen_name: ListenName = None,
    insecure_listen: InsecureListen = False,
    leave: Annotated[
        bool,
        typer.Option(
            "--leave", help="At the end, leave what runs on --cluster at work: the next server adopts it."
        ),
    ] = False,
    cluster: Cluster = None,
) -> None:
    """Runs the server until SIGTERM or Ctrl-C.

    For containers, batch systems and systemd.
    At the end running jobs save what they hold; they go on at the next start.
    """
    from orch.cli.foreground import Foreground

    target = find_target(cluster)
    _refuse_amounts(target, cpus, gpus)
    place = _listen(listen, tls_cert, tls_key, listen_name or [], insecure=insecure_listen)
    with output.progress() as shown:
        Foreground(target, shown, cpus=cpus, gpus=gpus, ray=ray, leave=leave, listen=place).serve()
    output.write_line("the server is stopped")


def restart(
    new_token: Annotated[
        bool, typer.Option("--new-token", help="Also makes a new token; the old one is refused from then on.")
    ] = False,
    output_format: Output = Format.TABLE,
    cluster: Cluster = None,
) -> None:
    """Starts the server anew, of the orch that is installed now.

    Training goes on meanwhile: Ray and the agents stay as they are.
    """
    from orch.cli.launch import restart_server

    target = find_target(cluster)
    if not target.can_start:
        raise WrongUse(f"the server at {target.address} is not restarted from here; do it on that machine")
    with output.progress() as shown:
        found = restart_server(target.home, shown, new_token=new_token)
    if output_format is Format.JSON:
        output.write_json({"version": output.VERSION, "server": found})
    else:
        output.write_line(f"the server answers at {found['url']}")


def environment(output_format: Output = Format.TABLE) -> None:
    """Prints what `ray start` needs in its environment on every node of a cluster, as lines for a shell."""
    from orch.control.raysettings import cluster_environment

    found = cluster_environment()
    if output_format is Format.JSON:
        output.write_json({"version": output.VERSION, "environment": found})
        return
    for name, value in found.items():
        output.write_line(f"export {name}={shlex.quote(value)}")


def store(
    to: Annotated[
        int | None,
        typer.Option("--to", metavar="VERSION", min=1, help="Bring its tables down to this version."),
    ] = None,
    output_format: Output = Format.TABLE,
) -> None:
    """Which database holds the jobs, and the version of its tables.

    An older orch refuses tables that a newer one has brought up; --to brings them down again, with the server stopped.
    """
    from orch.cli.connect import config_of
    from orch.control.home import Home
    from orch.control.store import Store, store_url

    home = Home.find()
    if to is not None and home.read_server() is not None:
        raise WrongUse("the server runs, or was not stopped: `orch server stop` first")
    url = store_url(home, {"ORCH_STORE": config_of(home).store or ""})
    if url.drivername == "sqlite" and not Path(url.database or "").exists():
        raise WrongUse(f"there is no store yet: {url.database} does not exist")
    before = Store.version(url) if to is None else Store.lower(url, to)
    found = {"store": url.render_as_string(hide_password=True), "version": to or before, "before": before}
    if output_format is Format.JSON:
        output.write_json({"version": output.VERSION, "store": found})
        return
    was = "" if to in {None, before} else f", before {before}"
    output.write_line(f"{found['store']}: version {found['version']}{was}")


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
