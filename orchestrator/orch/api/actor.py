"""The controller as a detached Ray actor on the head node, restarted by Ray: engine, API and their end.

Its constructor does everything, so that a restart after a SIGKILL is the same as a start.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from orch.api.outside import listen_of
from orch.control.home import Home, ServerRecord
from orch.model.config import load_config
from orch.model.errors import NoServer, OrchError
from orch.model.listening import Listen, server_context

if TYPE_CHECKING:
    from orch.api.serve import ApiServer
    from orch.control.operations import Operations

LOG_NAME = "controller.log"
RESTART_PAUSE_S = 1.0
END_AFTER_S = 1.0
"""Time for the answer to `stop` to reach its asker before the process ends."""


class ControllerActor:
    """Ray calls only these few methods; everything else comes by HTTP."""

    def __init__(self, home: str, ray_address: str, version: str) -> None:
        try:
            self._set_up(home, ray_address, version)
        except Exception:
            from orch.control.cluster import this_actor_was_restarted

            # Ray gives an actor up whose constructor raises, and restarts one whose process ends. At the first start
            # the person who waits for it gets the reason; later nobody would be left to start it again.
            if not this_actor_was_restarted():
                raise
            logging.getLogger("orch").exception("the controller could not be restarted; trying again")
            time.sleep(RESTART_PAUSE_S)
            os._exit(1)

    def _set_up(self, home: str, ray_address: str, version: str) -> None:
        # Heavy imports belong to the process that serves, not to whoever starts it.
        from orch.control.cluster import Cluster
        from orch.control.controller import Controller
        from orch.control.logfiles import remove_old_logs
        from orch.control.operations import Operations
        from orch.control.store import Store

        self._home = Home(Path(home)).ensure()
        _log_to(self._home.root / LOG_NAME)
        config = load_config(self._home.root)
        named = os.environ.get("ORCH_STORE") or config.store
        store = Store.open(self._home, {"ORCH_STORE": named or ""})
        controller = Controller(store, Cluster(), self._home, on_taken=self._end_soon, lease_s=config.lease_s)
        self._operations: Operations = Operations(
            controller, config, version, ray_address, on_stop=self._end_soon
        )
        remove_old_logs(store, self._home, config.keep_logs_s)
        controller.start()
        record = self._home.read_server()
        self._api = self._serve(config.port or (_port_of(record.url) if record else 0))
        self._outside = self._serve_outside(listen_of(self._home, config))
        self._home.write_server(ServerRecord(self._api.url, os.getpid(), version, ray_address))

    def ready(self) -> str:
        return self._api.url

    def secrets(self, job: str) -> dict[str, str]:
        """For the job's agents; they keep them in memory."""
        return self._operations.secrets(job)

    def over(self, jobs: list[str]) -> list[str]:
        """Which of these are over: an agent that comes to a machine clears away what they left there."""
        return self._operations.over(jobs)

    def _serve(self, wanted_port: int) -> ApiServer:
        """At the recorded port, where whoever follows a restarted controller looks for it; else anywhere."""
        from orch.api.serve import ApiServer

        token = self._home.ensure_token()
        try:
            api = ApiServer(self._operations, token, port=wanted_port)
        except NoServer:
            api = ApiServer(self._operations, token)
        api.start()
        return api

    def _serve_outside(self, listen: Listen | None) -> ApiServer | None:
        """For other machines. Where that has become impossible, a restarted controller does without: jobs go first."""
        from orch.api.serve import ApiServer
        from orch.control.cluster import this_actor_was_restarted

        if listen is None:
            return None
        try:
            token, tls = self._home.ensure_token(), server_context(listen)
            api = ApiServer(
                self._operations, token, host=listen.host, port=listen.port, hosts=listen.names, tls=tls
            )
            api.start()
        except OrchError:
            if not this_actor_was_restarted():
                raise
            logging.getLogger("orch").exception("the server does not listen at %s any more", listen.url)
            return None
        return api

    def _end_soon(self) -> None:
        """The server was stopped, or another controller has taken over: this one must not be restarted either."""
        from orch.control.cluster import end_this_actor

        timer = threading.Timer(END_AFTER_S, end_this_actor)
        timer.daemon = True
        timer.start()


def _port_of(url: str) -> int:
    return int(url.rpartition(":")[2])


def _log_to(path: Path) -> None:
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger("orch")
    root.setLevel(logging.INFO)
    root.addHandler(handler)
    logging.getLogger("uvicorn").addHandler(handler)
