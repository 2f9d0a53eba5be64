"""Serves the API from a thread of the controller's process."""

import ipaddress
import logging
import socket
import ssl
import threading
from collections.abc import Iterable

import uvicorn

from orch.api.app import create_app
from orch.api.connection import Connection
from orch.api.gate import ANY_ADDRESS
from orch.api.limits import BACKLOG, CONNECTIONS_MAX, HEAD_BYTES_MAX, KEEP_ALIVE_S
from orch.control.service import ControlService
from orch.model.errors import NoServer

LOOPBACK = "127.0.0.1"
START_LIMIT_S = 20.0
STOP_LIMIT_S = 5
"""Calls that are being answered get so long to end."""


class ApiServer:
    """`start` once, `stop` once."""

    def __init__(
        self,
        service: ControlService,
        token: str,
        *,
        host: str = LOOPBACK,
        port: int = 0,
        hosts: Iterable[str] = (),
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """Port 0: any that is free. `hosts`: more names it is reached under. NoServer if the port is taken."""
        self._service = service
        self._tls = tls
        app = create_app(service, token, (*_names_of(host), *hosts))
        self._socket = _listen(host, port)
        self._host, self._port = host, self._socket.getsockname()[1]
        config = uvicorn.Config(
            app,
            log_config=None,
            log_level=logging.WARNING,
            access_log=False,
            server_header=False,
            lifespan="off",
            ws="none",
            http=Connection,  # not whichever parser happens to be installed
            h11_max_incomplete_event_size=HEAD_BYTES_MAX,
            limit_concurrency=CONNECTIONS_MAX,
            backlog=BACKLOG,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=STOP_LIMIT_S,
            ssl_context_factory=None if tls is None else lambda _config, _make: tls,
        )
        self._server = _Server(config)
        self._thread = threading.Thread(target=self._run, name="orch-api", daemon=True)

    @property
    def url(self) -> str:
        name = f"[{self._host}]" if ":" in self._host else self._host
        return f"http{'' if self._tls is None else 's'}://{name}:{self._port}"

    def start(self) -> str:
        """Returns the URL once it answers there."""
        self._thread.start()
        if not self._server.ready.wait(START_LIMIT_S) or not self._server.started:
            raise NoServer(
                f"the API did not start at {self.url} within {START_LIMIT_S:g} s; see the server's log"
            )
        return self.url

    def stop(self) -> None:
        """Ends it; calls that wait for news are answered with what there is."""
        self._service.bell.close()
        self._server.should_exit = True
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(2 * STOP_LIMIT_S)
        self._socket.close()

    def _run(self) -> None:
        try:
            self._server.run(sockets=[self._socket])
        finally:
            self._server.ready.set()


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        self.ready.set()


def _names_of(host: str) -> tuple[str, ...]:
    """Under which Host a server at this address is asked for, beside loopback's."""
    address = ipaddress.ip_address(host)
    here = f"[{host}]" if address.version == 6 else host
    if address.is_loopback:
        return (here,)
    own = (socket.gethostname(), socket.getfqdn())
    if address.is_unspecified:
        return (ANY_ADDRESS, *own)
    return (here, *own)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With its protocol named: else asyncio takes it for no TCP and leaves Nagle's algorithm on, and every answer comes
    # 40 ms late.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        # A server that starts again at once must get its port although old connections linger.
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if host == "::" else 1)
        listening.bind((host, port))
    except OSError as error:
        listening.close()
        raise NoServer(
            f"port {port} of {host} cannot be had ({error.strerror}); set another `port`"
        ) from error
    return listening
