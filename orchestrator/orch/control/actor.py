"""The controller as a detached Ray actor on the head node, restarted by Ray: engine, API and their end.

Its constructor does everything, so that a restart after a SIGKILL is the same as a start.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from orch.control.home import Home, ServerRecord

if TYPE_CHECKING:
    from orch.control.operations import Operations

LOOPBACK = "127.0.0.1"
LOG_NAME = "controller.log"
API_READY_LIMIT_S = 30.0
END_AFTER_S = 1.0
"""Time for the answer to `stop` to reach its asker before the process ends."""


class ControllerActor:
    """Ray calls only these few methods; everything else comes by HTTP."""

    def __init__(self, home: str, ray_address: str, version: str) -> None:
        # Heavy imports belong to the process that serves, not to whoever starts it.
        from orch.api.app import create_app
        from orch.control.cluster import Cluster
        from orch.control.controller import Controller
        from orch.control.operations import Operations
        from orch.control.store import Store

        self._home = Home(Path(home)).ensure()
        _log_to(self._home.root / LOG_NAME)
        token = self._home.ensure_token()
        store = Store.open(self._home)
        controller = Controller(store, Cluster(), self._home, on_taken=self._end_soon)
        self._operations: Operations = Operations(controller, version, ray_address, on_stop=self._end_soon)
        listener = _listener(self._home)
        self._url = f"http://{LOOPBACK}:{listener.getsockname()[1]}"
        controller.start()
        self._serve(create_app(self._operations, token=token), listener)
        self._home.write_server(ServerRecord(self._url, os.getpid(), version, ray_address))

    def ready(self) -> str:
        return self._url

    def secrets(self, job: str) -> dict[str, str]:
        """For the job's agents; they keep them in memory."""
        return self._operations.secrets(job)

    def _serve(self, app: object, listener: socket.socket) -> None:
        import uvicorn

        config = uvicorn.Config(app, log_config=None, access_log=False, lifespan="off")  # type: ignore[arg-type]
        server = uvicorn.Server(config)
        thread = threading.Thread(
            target=lambda: asyncio.run(server.serve(sockets=[listener])), name="api", daemon=True
        )
        thread.start()
        deadline = time.monotonic() + API_READY_LIMIT_S
        while not server.started:
            if not thread.is_alive() or time.monotonic() > deadline:
                raise RuntimeError("the API did not start; see the controller's log")
            time.sleep(0.005)

    def _end_soon(self) -> None:
        """The server was stopped, or another controller has taken over: this one must not be restarted either."""

        def end() -> None:
            import ray

            ray.kill(ray.get_runtime_context().current_actor, no_restart=True)

        timer = threading.Timer(END_AFTER_S, end)
        timer.daemon = True
        timer.start()


def _listener(home: Home) -> socket.socket:
    """The port of the record, so that whoever follows finds a restarted controller where it was; else a free one."""
    record = home.read_server()
    wanted = int(record.url.rpartition(":")[2]) if record is not None else 0
    for port in dict.fromkeys((wanted, 0)):
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((LOOPBACK, port))
        except OSError:
            listener.close()
            continue
        listener.listen(128)
        return listener
    raise RuntimeError("no port of the loopback interface is free")


def _log_to(path: Path) -> None:
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger("orch")
    root.setLevel(logging.INFO)
    root.addHandler(handler)
    logging.getLogger("uvicorn").addHandler(handler)
