"""The agent: a worker inside a Ray actor. The only file on the machines' side that knows Ray."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from orch_policies.lease import Answer, Verdict
from orch_workers.actor_names import CONTROLLER_NAME, NAMESPACE, agent_name, agents_among
from orch_workers.config import WorkerConfig
from orch_workers.contact import ContactWatch
from orch_workers.errors import SecretsUnavailableError
from orch_workers.gang.worker import GangWorker
from orch_workers.logs.worker_log import read_part
from orch_workers.parting import leave_cluster
from orch_workers.preemption import Leaving, Moment, Notice, Watcher, deadline_in, sigterm, sources_of
from orch_workers.remains import sweep_remains
from orch_workers.reports import Reports
from orch_workers.shared import assert_shared
from orch_workers.sweep import sweep_job
from orch_workers.worker import Worker

SECRETS_CALL_LIMIT_S = 10.0
SECRETS_RETRY_S = 0.5
OVER_CALL_LIMIT_S = 10.0
RETIRE_LIMIT_S = 5.0
"""How long the worker of an older attempt may take to be gone before that of the next takes over."""
SENDERS = 4
EXIT_GIVEN_UP = 70
EXIT_CUT_OFF = 71
EXIT_TERMINATED = 143

log = logging.getLogger(__name__)


class Agent:
    """Ray actor, one per worker, never restarted by Ray. Its methods run in threads (`max_concurrency`)."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config = WorkerConfig.from_dict(config).placed(os.environ)
        import ray

        paths = self._config.paths
        paths.make()
        self._log_path = paths.log  # the same one for its whole life, whatever attempts it adopts
        self._reports = Reports(paths.state, self._config.attempt, self._config.rank)
        self._raising = threading.Lock()
        self._swept = False
        self._worker = self._make_worker()
        node_id = ray.get_runtime_context().get_node_id()
        self._leaving = Leaving(
            _Present(self),
            self._reports,
            attempt=self._config.attempt,
            rank=self._config.rank,
            node_id=node_id,
            grace_s=self._config.grace_s,
            path=paths.state / "notices.json",
        )
        sources = (
            sources_of(os.environ, lambda: _drain_deadline_ms(node_id)) if self._config.heeds_notices else []
        )
        self._watcher = Watcher(sources, self._leaving.notice, answered=self._leaving.answered)
        self._contact = ContactWatch(_asking(node_id), self._config.lease_s, self._on_cut_off)
        sigterm.install(self._on_term)
        self._worker.start()
        self._watcher.start()
        self._contact.start()
        threading.Thread(target=self._sweep_remains, name="remains", daemon=True).start()

    def _make_worker(self) -> Worker:
        if self._config.world_size > 1:
            return self._make_gang_worker()
        return Worker(self._config, self._reports, self._before_all_else, give_up=_give_up)

    def _make_gang_worker(self) -> GangWorker:
        import ray

        return GangWorker(
            self._config,
            self._reports,
            self._before_all_else,
            give_up=_give_up,
            say=_Peers(self._config.job_id).say,
            address=ray.util.get_node_ip_address(),
        )

    @property
    def worker(self) -> Worker:
        """That of the present attempt."""
        return self._worker

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

    def log_part(self, offset: int, size_bytes: int) -> bytes:
        """A piece of what the command wrote, for a server that does not see this machine's files."""
        return read_part(self._log_path, offset, size_bytes)

    def stop(self, outcome: str, grace_s: float) -> None:
        self._worker.stop(outcome, grace_s)

    def preempt(self, reason: str, grace_s: float) -> None:
        """Somebody wants the job's place, and not the machine."""
        deadline = deadline_in(grace_s, Moment.now())
        self._leaving.notice(Notice("orch", "preempt", reason, "", deadline, machine=False))

    def gang(self, message: Mapping[str, Any]) -> None:
        """Another rank's agent has something to say."""
        if isinstance(self._worker, GangWorker):
            self._worker.heard(message)

    def raise_attempt(self, attempt: int, policy: Mapping[str, Any]) -> None:
        """Another rank is replaced: this agent stays with its memory, and belongs to `attempt` now. Repeatable.

        Its worker begins anew, as that of a new agent on this machine would.
        """
        with self._raising:
            old = self._worker
            if self._swept or attempt <= self._config.attempt or not isinstance(old, GangWorker):
                return
            if old.ended and old.outcome != "succeeded":
                return
            old.retire(RETIRE_LIMIT_S)
            self._config = self._config.adopting(attempt, dict(policy))
            self._config.paths.make()
            new = self._make_gang_worker()
            new.take_over_stop(old)
            self._worker = new
            new.start()

    def ended(self) -> bool:
        return self._worker.ended

    def sweep(self) -> None:
        """The job is over: what still runs is ended, and nothing stays on this machine but its logs."""
        self._watcher.stop()
        self._contact.stop()
        self._worker.halt()
        with self._raising:  # a worker that took over after this would make the job's folders anew
            self._swept = True
            self._worker.halt()
            sweep_job(self._config.paths)

    def _on_term(self) -> None:
        """The machine goes down, as far as anybody can know. Once its worker has ended, the agent goes at once."""
        if self._worker.ended:
            os._exit(EXIT_TERMINATED)
        reason = "the agent was told to end (SIGTERM), as when its machine goes down"
        self._leaving.notice(
            Notice("sigterm", "preempt", reason, "", deadline_in(sigterm.GRACE_S, Moment.now()))
        )
        last = threading.Timer(sigterm.GRACE_S, os._exit, (EXIT_TERMINATED,))
        last.daemon = True
        last.start()

    def _on_cut_off(self, verdict: Verdict, reason: str) -> None:
        self._watcher.stop()
        leave_cluster(self._worker, self._config.paths, verdict, reason)
        os._exit(EXIT_CUT_OFF)

    def _sweep_remains(self) -> None:
        import ray
        from ray import exceptions

        def over(jobs: list[str]) -> list[str]:
            try:
                controller = ray.get_actor(CONTROLLER_NAME, NAMESPACE)
                found: list[str] = ray.get(controller.over.remote(jobs), timeout=OVER_CALL_LIMIT_S)
            except (ValueError, exceptions.RayError):
                return []  # the controller is away: the next agent asks again
            return found

        sweep_remains(self._config.paths, over)

    def _before_all_else(self) -> dict[str, str]:
        """The job's secrets, once its storage is known to be the one that the server writes to."""
        assert_shared(self._config, socket.gethostname())
        return self._fetch_secrets()

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
                controller = ray.get_actor(CONTROLLER_NAME, NAMESPACE)
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


class _Present:
    """The worker of the present attempt, for those who live longer than one."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent

    @property
    def ended(self) -> bool:
        return self._agent.worker.ended

    @property
    def durable_s(self) -> float | None:
        return self._agent.worker.durable_s

    def stop(self, outcome: str, grace_s: float, reason: str = "", until_s: float | None = None) -> None:
        self._agent.worker.stop(outcome, grace_s, reason, until_s)

    def save_soon(self) -> None:
        self._agent.worker.save_soon()


class _Peers:
    """Messages to the agents of the other ranks. Each is the sender's whole state, so only the newest one of a kind to
    a rank counts: one is on its way, one of each kind may wait for it, and what does not arrive is forgotten.
    """

    def __init__(self, job_id: str) -> None:
        self._job_id = job_id
        self._lock = threading.Lock()
        self._waiting: dict[int, dict[str, Mapping[str, Any]]] = {}
        self._busy: set[int] = set()
        self._handles: dict[int, Any] = {}
        self._pool = ThreadPoolExecutor(SENDERS, thread_name_prefix="peers")

    def say(self, rank: int, message: Mapping[str, Any]) -> None:
        with self._lock:
            self._waiting.setdefault(rank, {})[message["kind"]] = message
            if rank in self._busy:
                return
            self._busy.add(rank)
        self._pool.submit(self._send, rank)

    def _send(self, rank: int) -> None:
        with self._lock:
            waiting, handle = self._waiting.get(rank), self._handles.get(rank)
            if not waiting:
                self._busy.discard(rank)
                return
            message = waiting.pop(next(iter(waiting)))
        try:
            if handle is None:
                handle = self._handles[rank] = self._find(rank)
            handle.gang.remote(dict(message)).future().add_done_callback(lambda done: self._sent(rank, done))
        except Exception as error:
            self._failed(rank, error)

    def _sent(self, rank: int, done: Any) -> None:
        error = done.exception()
        if error is not None:
            self._failed(rank, error)
        else:
            self._pool.submit(self._send, rank)

    def _failed(self, rank: int, error: BaseException) -> None:
        """It is not there, or not any more; it is said again soon, to whoever is there then."""
        log.info("rank %s cannot be told anything now: %s", rank, error)
        with self._lock:
            self._handles.pop(rank, None)
            self._busy.discard(rank)

    def _find(self, rank: int) -> Any:
        """Of the agents that bear this rank's name the newest. ValueError: there is none."""
        import ray

        named: list[Any] = ray.util.list_named_actors(all_namespaces=True)
        attempts = [found for job, found, at in agents_among(named) if (job, at) == (self._job_id, rank)]
        if not attempts:
            raise ValueError(f"no agent of rank {rank}")
        return ray.get_actor(agent_name(self._job_id, max(attempts), rank), NAMESPACE)


def _give_up() -> None:
    """Ends the agent at once: its guard ends what runs, its successor adopts what it held, a budget pays for it."""
    os._exit(EXIT_GIVEN_UP)


def _asking(node_id: str) -> Callable[[float], Answer]:
    """Asks the cluster itself, not the controller, whether it knows this node as alive."""
    from ray import NodeID
    from ray._private import worker as ray_worker
    from ray.exceptions import RpcError

    node = NodeID.from_hex(node_id)
    connected: Any = ray_worker.global_worker

    def ask(limit_s: float) -> Answer:
        try:
            alive = connected.gcs_client.check_alive([node], timeout=limit_s)[0]
        except (RpcError, TimeoutError):
            return "silent"
        return "alive" if alive else "dead"

    return ask


def _drain_deadline_ms(node_id: str) -> int | None:
    """Of the drain of this node; None: it is not drained. Private in Ray 2.60, and nowhere else (FIELD)."""
    from ray._private import state

    found: int | None = state.state.get_draining_nodes().get(node_id)
    return found
