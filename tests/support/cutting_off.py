"""A node in a network namespace of its own, cut off by taking its link down: needs root. Both ends are looked at."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orch.control.home import Home
from orch.control.raylocal import answers, free_port, ray_environment
from support.losing_nodes import (
    AWAKE,
    GONE_LIMIT_S,
    assert_lost_with_its_node,
    assert_went_on,
    at_work,
    measured,
)
from support.nodes import ELSEWHERE, Node
from support.recovery import STEPS, Victim
from support.server import Server, wait_for

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator

LEASE = "5s"
STEPS_LONG = 2000
"""The end that was cut off goes on for as long as its lease, and must not be done by then."""
LONG = f"--set=env.STEPS={STEPS_LONG}"
NETWORK = "10.213.{}"


def refusal() -> str:
    """Why this machine does not allow it; empty where it does."""
    if os.geteuid() != 0:
        return "only root may make network namespaces"
    if shutil.which("ip") is None:
        return "there is no `ip` (iproute2)"
    name = f"orch-try-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        return made.stderr.strip() or "`ip netns add` does not work here"
    subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
    return ""


class Link:
    """A namespace, and a pair of interfaces that joins it to this one."""

    def __init__(self) -> None:
        number = os.getpid() % 250
        self.name = f"orch-{os.getpid()}"
        self._outer, inner = f"oo{os.getpid()}", f"oi{os.getpid()}"
        net = NETWORK.format(number)
        self.here, self.there = f"{net}.1", f"{net}.2"
        self.inside = ("ip", "netns", "exec", self.name)
        _ip("netns", "add", self.name)
        _ip("link", "add", self._outer, "type", "veth", "peer", "name", inner)
        _ip("link", "set", inner, "netns", self.name)
        _ip("addr", "add", f"{self.here}/30", "dev", self._outer)
        _ip("link", "set", self._outer, "up")
        _ip("-n", self.name, "addr", "add", f"{self.there}/30", "dev", inner)
        _ip("-n", self.name, "link", "set", inner, "up")
        _ip("-n", self.name, "link", "set", "lo", "up")

    def cut(self) -> None:
        _ip("link", "set", self._outer, "down")

    def join(self) -> None:
        _ip("link", "set", self._outer, "up")

    def remove(self) -> None:
        for words in (("link", "del", self._outer), ("netns", "del", self.name)):
            subprocess.run(["ip", *words], capture_output=True, check=False)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@contextlib.contextmanager
def cluster() -> Iterator[tuple[Server, Link, list[Node]]]:
    """A head on this end of a link, a server that uses it, and the list of nodes to be ended with it."""
    home = Path(tempfile.mkdtemp(prefix="orch-"))
    (home / "config.yaml").write_text(f"lease: {LEASE}\n")
    Home(home).ensure().ensure_ray_token()
    server = Server(home, ray_environment(home))
    link = Link()
    nodes: list[Node] = []
    try:
        port = free_port()
        nodes.append(Node(server, cpus=1, ip=link.here, head_port=port))
        server.env["ORCH_CLUSTER"] = f"{link.here}:{port}"
        wait_for("the head answers", lambda: answers(f"{link.here}:{port}"))
        server.start()
        yield server, link, nodes
    finally:
        server.stop()
        for node in reversed(nodes):
            node.remove()
        link.remove()
        shutil.rmtree(home)


def cut_off(rng: random.Random) -> dict[str, Any]:
    with cluster() as (server, link, nodes):
        calm = Victim(server, LONG)
        calm.finish()
        far = Node(server, ip=link.there, inside=link.inside)
        nodes.append(far)
        far.ready()
        victim = Victim(server, ELSEWHERE, AWAKE, LONG)
        assert at_work(victim, [far], rng, most=STEPS // 4) is far
        near = Node(server, ip=link.here)
        nodes.append(near)
        near.ready()
        link.cut()
        cut_s = time.monotonic()
        lost = victim.wait_event("AgentLost")
        seen_s = time.monotonic() - cut_s
        assert_lost_with_its_node(victim, lost, far)
        victim.wait_event("Recovered", lambda data: data["generation"] == "000002.000001")
        wait_for("the end that was cut off has ended its work", lambda: not far.at_work(), GONE_LIMIT_S)
        ended_s = time.monotonic() - cut_s
        detail = assert_went_on(
            victim, calm.final_bytes(), [far, near], far, steps=STEPS_LONG, told_of_all=False
        )
        link.join()
        wait_for("nothing is left of the node", far.ended, GONE_LIMIT_S)
        return measured(detail, seen_s=round(seen_s, 2), other_end_ended_s=round(ended_s, 2))
