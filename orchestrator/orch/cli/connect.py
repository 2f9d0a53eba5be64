"""Which server a verb talks to: the one of this home, one at a URL, or one at the other end of SSH."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from orch.control.home import Home
from orch.model.errors import NoServer, OrchError, WrongUse

if TYPE_CHECKING:
    from collections.abc import Iterator

    from orch.api.client import Client
    from orch.cli.output import Progress
    from orch.model.config import Config

COMPLETION_JOBS_MAX = 200


@dataclass(frozen=True, slots=True)
class Target:
    """`home`: the server that the home folder records, on a Ray of its own or (`ray`) at `address`."""

    kind: Literal["home", "ray", "api", "ssh"]
    address: str
    home: Home

    @property
    def can_start(self) -> bool:
        """Whether the server is one that this machine starts."""
        return self.kind in {"home", "ray"}


def config_of(home: Home) -> Config:
    from orch.model.config import load_config

    return load_config(home.root)


def find_target(cluster: str | None) -> Target:
    """`--cluster`, else ORCH_URL, else ORCH_CLUSTER, else the config file, else this machine."""
    home = Home.find()
    if cluster is None:
        if url := os.environ.get("ORCH_URL"):
            return Target("api", url, home)
        # Reading the config loads a YAML parser, which `orch status` on one machine need not wait for.
        if any(map(os.environ.get, ("ORCH_CLUSTER", "ORCH_CONFIG"))) or home.config.exists():
            cluster = config_of(home).cluster
    if cluster is None:
        return Target("home", "", home)
    from orch.model.config import CLUSTER_ALLOWED, cluster_kind

    try:
        return Target(cluster_kind(cluster), cluster, home)
    except ValueError as error:
        raise WrongUse(f"--cluster: {cluster!r} {error}; allowed: {CLUSTER_ALLOWED}") from None


@contextlib.contextmanager
def connected(cluster: str | None = None) -> Iterator[Client]:
    """A client of the server that is meant. Whether it answers shows with the first call."""
    with _client(find_target(cluster)) as client:
        yield client


@contextlib.contextmanager
def connected_or_started(cluster: str | None, shown: Progress) -> Iterator[Client]:
    """The same, with a server that was started if none answered. NoServer where it is not ours to start."""
    target = find_target(cluster)
    if target.can_start and not server_answers(target):
        from orch.cli.launch import start_server

        start_server(target, shown)
    with _client(target) as client:
        yield client


def server_answers(target: Target) -> bool:
    try:
        with _client(target) as client:
            client.server()
    except NoServer:
        return False
    return True


@contextlib.contextmanager
def _client(target: Target) -> Iterator[Client]:
    from orch.api.client import Client

    if target.kind == "ssh":
        from orch.cli.tunnel import tunnel

        with tunnel(target.address) as (url, token), _closing(Client(url, token)) as client:
            yield client
        return
    if target.kind == "api":
        token = os.environ.get("ORCH_TOKEN") or _token_for(target)
        _warn_of_the_open_way(target.address)
        found = Client(target.address, token)
    else:
        _same_cluster(target)
        # Without ORCH_URL, which find_target has judged already: --cluster goes before it.
        found = Client.find(target.home, env={})
    with _closing(found) as client:
        yield client


@contextlib.contextmanager
def _closing(client: Client) -> Iterator[Client]:
    from orch.cli.interrupting import beside
    from orch.cli.output import say

    client.carry_with(beside)
    client.tell_gaps(lambda why: say(f"orch: {why}; waiting for it"))
    try:
        yield client
    finally:
        client.close()


def _token_for(target: Target) -> str:
    """The home's token is for the home's server, and is sent nowhere else."""
    record = target.home.read_server()
    if record is not None and record.url.rstrip("/") == target.address.rstrip("/"):
        return target.home.read_token()
    raise WrongUse(
        f"the server at {target.address} asks for a token: put it into ORCH_TOKEN"
        " (it is the text of the file `token` in the server's home folder)"
    )


def _warn_of_the_open_way(address: str) -> None:
    from urllib.parse import urlsplit

    from orch.cli.output import say
    from orch.model.addresses import address_of

    parts = urlsplit(address)
    host = parts.hostname or ""
    found = address_of(host)
    if parts.scheme == "http" and host != "localhost" and not (found is not None and found.is_loopback):
        say(
            f"orch: the token crosses the network to {host} in the open: use https:// or ssh:// where you can"
        )


def _same_cluster(target: Target) -> None:
    record = target.home.read_server()
    if target.kind == "ray" and record is not None and record.ray_address != target.address:
        raise WrongUse(
            f"the server of {target.home.root} runs on the Ray cluster at {record.ray_address}, not at"
            f" {target.address}: stop it with `orch server stop`, or set ORCH_HOME to another folder"
        )


def known_jobs() -> list[str]:
    """Ids for shell completion, which must stay silent whatever happens."""
    with contextlib.suppress(OrchError, OSError), connected() as client:
        return [str(job["id"]) for job in client.jobs(limit=COMPLETION_JOBS_MAX)]
    return []
