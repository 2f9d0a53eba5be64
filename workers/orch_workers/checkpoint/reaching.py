"""Which machines a storage may be at (orch.model.addresses), asked where names are resolved and connections made.

The spec's own text was judged when the job was read. A name may stand for another address here, at another time, or
after a redirect: so what was resolved is looked at when a storage is opened, and the S3 client looks at the other end
of every connection before it sends a byte.
"""

from __future__ import annotations

import socket
from functools import cache
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from orch.model.addresses import forbidden_address, forbidden_host, hosts_in
from orch.model.storage_url import NO_STORAGE
from orch_workers.checkpoint.errors import StorageRefused

if TYPE_CHECKING:
    from collections.abc import Mapping


def assert_allowed(url: str, options: Mapping[str, Any]) -> None:
    """StorageRefused if the URL or an option names a machine that is no storage. A name that nobody knows passes: that
    is for the client to say, and may be better in a minute.
    """
    named = [*hosts_in(dict(options))]
    if "://" in url and not url.startswith(("s3://", "s3a://", "file://")):
        named.append(("url", urlsplit(url).hostname or ""))
    for option, host in named:
        if host and (forbidden_host(host) or any(map(forbidden_address, _addresses_of(host)))):
            raise StorageRefused(f"{url}: {host!r} ({option}) {NO_STORAGE}")


def _addresses_of(host: str) -> list[str]:
    try:
        return [str(found[4][0]) for found in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)]
    except (OSError, ValueError):
        return []


def guard(client: Any) -> None:
    """Has a botocore client refuse, before anything is sent, every connection whose other end is no storage.

    The classes of connections are a part of botocore and of urllib3 that both keep out of their public names; a version
    without it is refused, not used unguarded.
    """
    try:
        # A proxy's pools share the dictionary, so both ways lead through these classes.
        classes = client._endpoint.http_session._pool_classes_by_scheme  # noqa: SLF001
        for scheme, known in list(classes.items()):
            classes[scheme] = _guarded(known)
    except AttributeError as error:
        raise StorageRefused(
            f"this version of botocore cannot be guarded ({error}); install the one in constraints.txt"
        ) from error


@cache
def _guarded(pool: type[Any]) -> type[Any]:
    connection: type[Any] = pool.ConnectionCls

    class Guarded(connection):  # type: ignore[misc]
        def _new_conn(self) -> socket.socket:
            made: socket.socket = super()._new_conn()
            other = str(made.getpeername()[0])
            if forbidden_address(other):
                made.close()
                raise StorageRefused(f"{self.host!r} leads to {other}, which {NO_STORAGE}")
            return made

    return type(f"Guarded{pool.__name__}", (pool,), {"ConnectionCls": Guarded})
