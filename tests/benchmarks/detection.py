"""How soon a lost node is seen: its raylet killed, everything on it frozen; Ray's own settings and orch's.

Both at once, on two nodes of one server, whose API says which nodes are alive; from the signal until one is not.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from rich.console import Console
from tests.benchmarks.processes import scratch
from tests.benchmarks.report import Report

from orch.control.raysettings import DETECTION
from support.nodes import Node
from support.server import Server, wait_for

OF_RAY = {
    "RAY_health_check_initial_delay_ms": "5000",
    "RAY_health_check_period_ms": "3000",
    "RAY_health_check_timeout_ms": "10000",
    "RAY_health_check_failure_threshold": "5",
    "RAY_grpc_client_keepalive_time_ms": "300000",
    "RAY_grpc_client_keepalive_timeout_ms": "120000",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "60",
}
"""Ray 2.60 as it comes."""
SIDES = {"orch": DETECTION, "ray": OF_RAY}
SEEN_LIMIT_S = 180.0


def measure(repetitions: int, console: Console) -> Report:
    report = Report("detection", by="frozen_s", ours="orch", facts={"settings": SIDES})
    for side, settings in SIDES.items():
        with scratch("detection") as folder:
            server = Server(folder / "home", dict(settings))
            try:
                server.start()
                for number in range(1, repetitions + 1):
                    found = _once(server)
                    report.add(side, **found)
                    console.print(f"{side} {number}/{repetitions}: {found}")
            finally:
                server.stop()
    return report


def _once(server: Server) -> dict[str, float]:
    nodes: list[Node] = []
    try:
        for _ in range(3):
            nodes.append(Node(server))
            nodes[-1].ready()
        killed, frozen, newest = nodes
        # Health checks of a node begin some time after its start: when the newest one's have found something, so have
        # all begun.
        newest.freeze()
        wait_for("health checks have begun", lambda: not newest.alive, SEEN_LIMIT_S)
        raylet = killed.raylet()
        assert raylet is not None
        frozen.freeze()
        frozen_s = time.monotonic()
        raylet.kill()
        return {
            "killed_s": _until(lambda: not killed.alive, time.monotonic()),
            "frozen_s": _until(lambda: not frozen.alive, frozen_s),
        }
    finally:
        for node in nodes:
            node.remove()


def _until(seen: Callable[[], bool], since_s: float) -> float:
    wait_for("it is seen", seen, SEEN_LIMIT_S)
    return time.monotonic() - since_s
