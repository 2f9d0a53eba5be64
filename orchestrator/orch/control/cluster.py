"""All of the controller's Ray calls. Names carry job and attempt, so repeating and sweeping need no handle."""

from __future__ import annotations

import logging
import re
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray import exceptions
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from orch.model.errors import NoServer
from orch.model.labels import NODE_LABEL
from orch_workers.actor_names import CONTROLLER_NAME, NAMESPACE, agent_name, agents_among

CONTROLLER_CONCURRENCY = 8
HEAD_RESOURCE = "node:__internal_head__"
HEAD_SHARE = 0.001
"""Of the one unit that every head node has: whoever takes a part of it is placed there."""
AGENT_CONCURRENCY = 16
"""Threads of an agent that answer calls: a few long polls, status, stop."""
CALL_LIMIT_S = 10.0
EVIDENCE_CHARS_MAX = 400
UNAVAILABLE_PAUSE_S = 0.2
"""Before a controller that Ray restarts is asked again."""
PROBE_LIMIT_S = 0.3
"""For a connection to a raylet, when one of its actors has just died."""
_VERSIONS = re.compile(r"Ray: (\S+)\s+Python: (\S+).*Ray: (\S+)\s+Python: (\S+)", re.DOTALL)
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_NODE_DIED = re.compile(r"node (?:has )?died.*?Node Id: ([0-9a-f]{56})", re.IGNORECASE | re.DOTALL)

log = logging.getLogger("orch.cluster")


@dataclass(frozen=True)
class Node:
    """A machine of the cluster with what Ray says it has in all."""

    node_id: str
    address: str
    cpus: float
    gpus: float
    memory_bytes: float
    labels: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Fate:
    """What is known of a node at the moment when something on it has died."""

    state: str = ""
    """alive, draining, dead; empty where Ray does not know it."""
    words: str = ""
    """Ray's reason, as the end of a sentence."""
    announced: bool = False
    """It was drained before it died."""
    drain_deadline_us: int | None = None


def gang_name(job_id: str, attempt: int) -> str:
    return f"gang/{job_id}/{attempt:06d}"


class Cluster:
    """The Ray cluster this process is connected to."""

    def nodes(self) -> list[Node]:
        return [
            Node(
                node_id=node["NodeID"],
                address=node["NodeManagerAddress"],
                cpus=node["Resources"].get("CPU", 0.0),
                gpus=node["Resources"].get("GPU", 0.0),
                memory_bytes=node["Resources"].get("memory", 0.0),
                labels=node.get("Labels"),
            )
            for node in ray.nodes()
            if node["Alive"]
        ]

    def fate(self, node_id: str) -> Fate:
        """Of a node that an agent has died on. One whose raylet refuses connections is dead, whatever Ray still
        believes: an agent's death is told in milliseconds, a raylet's only after several health checks.
        """
        node = next((row for row in ray.nodes() if row["NodeID"] == node_id), None)
        if node is None:
            return Fate()
        name = f"node {node_id[:8]} ({node['NodeManagerAddress']})"
        if not node["Alive"]:
            why = " ".join((node.get("DeathReasonMessage") or "").split())
            words = f"{name} is dead" + (f": {why}" if why else "")
            return Fate("dead", words, announced=node.get("DeathReason") == _drained())
        deadline_ms = _draining().get(node_id)
        if _refuses(node["NodeManagerAddress"], int(node["NodeManagerPort"])):
            return Fate("dead", f"{name}: its raylet is gone", announced=deadline_ms is not None)
        if deadline_ms is None:
            return Fate("alive")
        return Fate(
            "draining",
            f"{name} is being drained",
            announced=True,
            drain_deadline_us=deadline_ms * 1000 if deadline_ms else None,
        )

    # gangs

    def request_gang(
        self,
        job_id: str,
        attempt: int,
        bundle: Mapping[str, float],
        workers: int,
        avoid: Sequence[str] = (),
        placement: Mapping[str, Any] | None = None,
    ) -> None:
        """Asks for the gang, on none of the nodes in `avoid`, and as the job's `placement` says; a repeat for a name
        that exists is harmless.
        """
        if self._gang_row(job_id, attempt) is not None:
            return
        asked = placement or {}
        where: dict[str, Any] = dict(asked.get("labels") or {})
        if avoid:
            where[NODE_LABEL] = f"!in({','.join(avoid)})"
        selected: dict[str, Any] = {"bundle_label_selector": [where] * workers} if where else {}
        placement_group(
            [dict(bundle)] * workers,
            strategy=str(asked.get("workers") or "pack").upper(),
            name=gang_name(job_id, attempt),
            lifetime="detached",  # otherwise it dies with the controller and takes the agents along
            **selected,
        )

    def gang_granted(self, job_id: str, attempt: int) -> bool:
        row = self._gang_row(job_id, attempt)
        return row is not None and row["state"] == "CREATED"

    def gang_exists(self, job_id: str, attempt: int) -> bool:
        return self._gang_row(job_id, attempt) is not None

    def remove_gang(self, job_id: str, attempt: int) -> None:
        row = self._gang_row(job_id, attempt)
        if row is not None:
            remove_placement_group(self._gang(row))

    def gangs(self) -> list[tuple[str, int]]:
        """(job, attempt) of every gang that exists."""
        found = []
        for row in placement_group_table().values():
            kind, _, rest = row["name"].partition("/")
            if kind == "gang" and row["state"] != "REMOVED":
                job_id, _, attempt = rest.rpartition("/")
                found.append((job_id, int(attempt)))
        return found

    def _gang_row(self, job_id: str, attempt: int) -> dict[str, Any] | None:
        name = gang_name(job_id, attempt)
        for row in placement_group_table().values():
            if row["name"] == name and row["state"] != "REMOVED":
                return dict(row)
        return None

    @staticmethod
    def _gang(row: Mapping[str, Any]) -> PlacementGroup:
        from ray import PlacementGroupID

        return PlacementGroup(PlacementGroupID(bytes.fromhex(row["placement_group_id"])))

    # agents

    def start_agent(
        self, config: Mapping[str, Any], *, gang_attempt: int, bundle: Mapping[str, float]
    ) -> Any:
        """Starts the agent named in `config`, or returns the one that exists; its gang must be granted."""
        from orch_workers.agent import Agent

        job_id, attempt, rank = config["job_id"], config["attempt"], config["rank"]
        existing = self.find_agent(job_id, attempt, rank)
        if existing is not None:
            return existing
        row = self._gang_row(job_id, gang_attempt)
        if row is None:
            raise LookupError(f"{gang_name(job_id, gang_attempt)} does not exist")
        actor: Any = ray.remote(Agent)
        return actor.options(
            name=agent_name(job_id, attempt, rank),
            namespace=NAMESPACE,
            lifetime="detached",
            # With restarts left to Ray a death is seen after two seconds and its cause is hidden (FIELD).
            max_restarts=0,
            max_task_retries=0,
            max_concurrency=AGENT_CONCURRENCY,
            num_cpus=bundle.get("CPU", 0),
            num_gpus=bundle.get("GPU", 0),
            memory=int(bundle.get("memory", 0)) or None,
            scheduling_strategy=PlacementGroupSchedulingStrategy(
                self._gang(row), placement_group_bundle_index=rank
            ),
        ).remote(dict(config))

    def find_agent(self, job_id: str, attempt: int, rank: int) -> Any | None:
        try:
            return ray.get_actor(agent_name(job_id, attempt, rank), NAMESPACE)
        except ValueError:
            return None

    def agents(self) -> list[tuple[str, int, int]]:
        """(job, attempt, rank) of every agent that is alive."""
        named: list[Any] = ray.util.list_named_actors(all_namespaces=True)
        return agents_among(named)

    def kill_agent(self, job_id: str, attempt: int, rank: int) -> None:
        handle = self.find_agent(job_id, attempt, rank)
        if handle is not None:
            ray.kill(handle, no_restart=True)

    def call(self, handle: Any, method: str, *args: Any, limit_s: float = CALL_LIMIT_S) -> Any:
        return ray.get(getattr(handle, method).remote(*args), timeout=limit_s)

    def watch(self, handle: Any, cursor: int, on_answer: Callable[[Any, BaseException | None], None]) -> None:
        """One pending `events` call on the agent: its answer, or its death in milliseconds, goes to `on_answer`."""
        future = handle.events.remote(cursor).future()

        def answered(done: Any) -> None:
            error = done.exception()
            on_answer(None if error else done.result(), error)

        future.add_done_callback(answered)


def _why_unusable(address: str, ray_says: str) -> str:
    """In one sentence where Ray needs six lines: its versions differ, and Python's, to the last number."""
    unlike = _VERSIONS.search(ray_says)
    if unlike is None:
        return f"the Ray cluster at {address} cannot be used from here: {ray_says}"
    theirs_ray, theirs_python, ours_ray, ours_python = unlike.groups()
    return (
        f"the Ray cluster at {address} runs Ray {theirs_ray} on Python {theirs_python}, and here is Ray {ours_ray}"
        f" on Python {ours_python}: they must be the same; run orch in an environment that has the cluster's versions"
    )


def start_controller(
    actor_class: type,
    arguments: tuple[Any, ...],
    *,
    address: str,
    node_address: str | None,
    code: list[str] | None,
    limit_s: float,
) -> None:
    """Connects, starts the controller on the head node or finds it there, waits for it, and disconnects.

    `code`: packages to send along. NoServer with what Ray says when the cluster cannot be used.
    """
    own: dict[str, Any] = {} if node_address is None else {"_node_ip_address": node_address}
    try:
        ray.init(
            address=address,
            namespace=NAMESPACE,
            log_to_driver=False,
            configure_logging=False,
            runtime_env=None if code is None else {"py_modules": code},
            **own,
        )
    except (RuntimeError, ConnectionError) as error:
        raise NoServer(_why_unusable(address, str(error))) from error
    try:
        if not any(node["Alive"] and HEAD_RESOURCE in node["Resources"] for node in ray.nodes()):
            raise NoServer(f"the Ray cluster at {address} has no head node that is alive")
        actor: Any = ray.remote(actor_class)
        handle = actor.options(
            name=CONTROLLER_NAME,
            namespace=NAMESPACE,
            lifetime="detached",
            max_restarts=-1,
            max_concurrency=CONTROLLER_CONCURRENCY,
            num_cpus=0,
            get_if_exists=True,
            # Not by the node's id: a head that died and comes back (`ray_state: disk`) has another one.
            resources={HEAD_RESOURCE: HEAD_SHARE},
        ).remote(*arguments)
        _wait_ready(handle, limit_s)
    except exceptions.RayError as error:
        raise NoServer(f"the controller did not start: {error}") from error
    finally:
        ray.shutdown()


def _wait_ready(handle: Any, limit_s: float) -> None:
    """One that is found may be about to be started anew by Ray: after the head was killed (`ray_state: disk`)."""
    deadline_s = time.monotonic() + limit_s
    while True:
        left_s = max(0.0, deadline_s - time.monotonic())
        try:
            ray.get(handle.ready.remote(), timeout=left_s)
            return
        except exceptions.ActorUnavailableError:
            if left_s <= 0:
                raise
        time.sleep(UNAVAILABLE_PAUSE_S)


def end_this_actor() -> None:
    """Ends the process of the actor that calls it, for good: Ray does not restart it."""
    ray.kill(ray.get_runtime_context().current_actor, no_restart=True)


def this_actor_was_restarted() -> bool:
    return bool(ray.get_runtime_context().was_current_actor_reconstructed)


def is_death(error: BaseException) -> bool:
    """Evidence that an actor is gone for good, as against 'cannot be reached just now'."""
    return isinstance(error, exceptions.ActorDiedError)


def node_of_death(error: BaseException) -> str:
    """Ray's id of the node that the death is put down to; empty where it is the actor's own."""
    found = _NODE_DIED.search(_COLOURS.sub("", str(error)))
    return found[1] if found else ""


def was_announced(error: BaseException) -> bool:
    """Ray says that the actor's node was being drained when it went."""
    return bool(getattr(error, "preempted", False))


def _draining() -> dict[str, int]:
    """Node id → deadline in ms, 0 for none. Private in Ray 2.60, and nowhere else (FIELD)."""
    from ray._private import state

    found: dict[str, int] = state.state.get_draining_nodes()
    return found


def _drained() -> int:
    from ray.core.generated import common_pb2

    generated: Any = common_pb2  # without types
    number: int = generated.NodeDeathInfo.Reason.Value("AUTOSCALER_DRAIN_PREEMPTED")
    return number


def _refuses(host: str, port: int) -> bool:
    """Only a refusal is evidence; silence is none."""
    try:
        with socket.create_connection((host, port), timeout=PROBE_LIMIT_S):
            return False
    except ConnectionRefusedError:
        return True
    except OSError:
        return False


def death_evidence(error: BaseException) -> str:
    """What Ray says of a death, in one sentence without its identifiers and advice."""
    told = _COLOURS.sub("", str(error)).strip()
    if "creation task" in told:  # a traceback, of which the last line says what happened
        return f"it could not start: {told.splitlines()[-1].strip()}"[:EVIDENCE_CHARS_MAX]
    text = " ".join(told.split())
    pid = re.search(r"pid: (\d+)", text)
    exit_type = re.search(r"Worker exit type: (\w+)", text)
    detail = re.search(r"Worker exit detail: (.*?)(?:\. |$)", text)
    known = [f"pid {pid[1]}" if pid else "", exit_type[1] if exit_type else "", detail[1] if detail else ""]
    if not any(known[1:]):
        return text.rpartition("The actor is dead because ")[2][:EVIDENCE_CHARS_MAX]
    return f"Ray saw its process die ({', '.join(part for part in known if part)})"[:EVIDENCE_CHARS_MAX]
