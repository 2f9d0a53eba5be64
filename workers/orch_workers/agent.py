"""The agent: a worker inside a Ray actor. The only file on the machines' side that knows Ray."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from typing import Any

from orch_workers.config import WorkerConfig
from orch_workers.reports import Reports
from orch_workers.sweep import sweep_job
from orch_workers.worker import SecretsUnavailableError, Worker

CONTROLLER = ("controller", "orch")
"""Name and namespace of the actor that has the secrets."""
SECRETS_CALL_LIMIT_S = 10.0
SECRETS_RETRY_S = 0.5
EXIT_GIVEN_UP = 70


class Agent:
    """Ray actor, one per worker, never restarted by Ray. Its methods run in threads (`max_concurrency`)."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config = WorkerConfig.from_dict(config)
        paths = self._config.paths
        paths.make()
        self._reports = Reports(paths.state, self._config.attempt, self._config.rank)
        self._worker = Worker(self._config, self._reports, self._fetch_secrets, give_up=_give_up)
        self._worker.start()

    def describe(self) -> dict[str, Any]:
        """Who and where it is, and what its predecessors on this machine left in their journals."""
        import ray

        return {
            "pid": os.getpid(),
            "node": socket.gethostname(),
            "node_id": ray.get_runtime_context().get_node_id(),
            "backlog": self._reports.backlog,
        }

    def events(self, cursor: int) -> dict[str, Any]:
        """Waits for entries with a number above `cursor` or new progress; see `Reports.wait`."""
        return self._reports.wait(cursor)

    def stop(self, outcome: str, grace_s: float) -> None:
        self._worker.stop(outcome, grace_s)

    def ended(self) -> bool:
        return self._worker.ended

    def sweep(self) -> None:
        """The job is over: what still runs is ended, and nothing stays on this machine but its logs."""
        self._worker.halt()
        sweep_job(self._config.paths)

    def _fetch_secrets(self) -> dict[str, str]:
        """From the controller, kept in memory only: what is an actor's argument is stored by Ray.

        A controller that is being restarted is waited for; a stop ends the wait.
        """
        if not self._config.secret_names:
            return {}
        import ray
        from ray import exceptions

        while not self._worker.stopping.is_set():
            try:
                controller = ray.get_actor(*CONTROLLER)
                found: Any = ray.get(
                    controller.secrets.remote(self._config.job_id), timeout=SECRETS_CALL_LIMIT_S
                )
                return dict(found)
            except exceptions.RayTaskError as error:
                # The controller answered, and cannot open them: a person must act.
                raise SecretsUnavailableError(str(error.cause)) from error
            except (ValueError, exceptions.RayError):
                time.sleep(SECRETS_RETRY_S)
        raise InterruptedError("stopped while waiting for the job's secrets")


def _give_up() -> None:
    """Ends the agent at once: its guard ends what runs, its successor adopts what it held, a budget pays for it."""
    os._exit(EXIT_GIVEN_UP)
