"""Can a gang be placed: on what is free now, or ever, and in numbers why not."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

GRANULARITY = 10_000
"""Ray counts resources in ten-thousandths; comparing whole numbers of them avoids 0.1 + 0.2 > 0.3."""
GIB = 1 << 30
NODES_NAMED_MAX = 5


@dataclass(frozen=True)
class Request:
    """One gang: `workers` times the same."""

    workers: int = 1
    cpus: float = 1.0
    gpus: float = 0.0
    memory_bytes: int = 0
    labels: Mapping[str, str] = field(default_factory=dict)
    """What each machine must be labelled: a value, `!value`, `in(a,b)` or `!in(a,b)`."""


@dataclass(frozen=True)
class Node:
    """What one node has: in total for "ever", free for "now"."""

    node: str
    cpus: float
    gpus: float
    memory_bytes: int
    labels: Mapping[str, str] | None = None
    """None: not known, so it may have any."""


@dataclass(frozen=True)
class Fit:
    """`workers_max`: how many workers of this size the nodes hold. `reason` names what was asked and what is
    the largest possible.
    """

    fits: bool
    workers_max: int
    reason: str


def fits(request: Request, nodes: Sequence[Node]) -> Fit:
    """Whether the whole gang finds room at once."""
    # A list: several nodes may bear one name, as raylets that share a machine do.
    room = [(_workers_on(request, node), node.node) for node in nodes]
    workers_max = sum(count for count, _ in room)
    if workers_max >= request.workers:
        return Fit(True, workers_max, f"{_asked(request)}; there is room for {workers_max}")
    if not nodes:
        return Fit(False, 0, f"asked: {_asked(request)}; there is no node")
    if workers_max == 0:
        return Fit(False, 0, f"asked: {_asked(request)}; {_no_room(request, nodes)}")
    holding = sorted(((count, name) for count, name in room if count), key=lambda p: (-p[0], p[1]))
    named = ", ".join(f"{count} on {name}" for count, name in holding[:NODES_NAMED_MAX])
    more = len(holding) - NODES_NAMED_MAX
    named += f" and more on {more} other nodes" if more > 0 else ""
    return Fit(
        False,
        workers_max,
        f"asked: {_asked(request)}; the largest possible is {_workers(workers_max)} ({named})",
    )


def largest(nodes: Sequence[Node]) -> str:
    """The largest single worker each measure allows, in words."""
    cpus = max((node.cpus for node in nodes), default=0)
    gpus = max((node.gpus for node in nodes), default=0)
    memory_bytes = max((node.memory_bytes for node in nodes), default=0)
    return f"{cpus:g} CPUs, {gpus:g} GPUs, {memory_bytes / GIB:.1f} GiB of memory on one node"


def _units(amount: float) -> int:
    return round(amount * GRANULARITY)


def has_labels(node: Node, labels: Mapping[str, str]) -> bool:
    """As Ray compares them: a label that a node does not have is like no value, and unlike each."""
    return node.labels is None or all(_agrees(node.labels.get(name), rule) for name, rule in labels.items())


def _agrees(value: str | None, rule: str) -> bool:
    wanted = rule.removeprefix("!")
    listed = wanted[3:-1].replace(" ", "").split(",") if wanted.startswith("in(") else [wanted]
    return (value in listed) != rule.startswith("!")


def _workers_on(request: Request, node: Node) -> int:
    if not has_labels(node, request.labels):
        return 0
    pairs = [
        (_units(request.cpus), _units(node.cpus)),
        (_units(request.gpus), _units(node.gpus)),
        (request.memory_bytes, node.memory_bytes),
    ]
    # A worker that asks for nothing fits everywhere: then only the number asked for bounds the answer.
    return min((has // asks for asks, has in pairs if asks), default=request.workers)


def _no_room(request: Request, nodes: Sequence[Node]) -> str:
    """Not even one worker fits: which measure is too small everywhere."""
    labelled = [node for node in nodes if has_labels(node, request.labels)]
    if not labelled:
        asked = ", ".join(f"{name}: {rule}" for name, rule in request.labels.items())
        return f"no node is labelled {asked}"
    nodes, short = labelled, []
    if request.cpus and max(_units(node.cpus) for node in nodes) < _units(request.cpus):
        short.append(
            f"CPUs: {request.cpus:g} asked, {max(node.cpus for node in nodes):g} at most on one node"
        )
    if request.gpus and max(_units(node.gpus) for node in nodes) < _units(request.gpus):
        short.append(
            f"GPUs: {request.gpus:g} asked, {max(node.gpus for node in nodes):g} at most on one node"
        )
    memory_bytes = max(node.memory_bytes for node in nodes)
    if memory_bytes < request.memory_bytes:
        short.append(
            f"memory: {request.memory_bytes / GIB:.1f} GiB asked, {memory_bytes / GIB:.1f} GiB at most on one"
        )
    if short:
        return "; ".join(short)
    return f"no single node has all of it together; the largest possible are {largest(nodes)}"


def _asked(request: Request) -> str:
    parts = [f"{request.cpus:g} CPUs"] if request.cpus else []
    parts += [f"{request.gpus:g} GPUs"] if request.gpus else []
    parts += [f"{request.memory_bytes / GIB:.1f} GiB of memory"] if request.memory_bytes else []
    each = " with " + ", ".join(parts) + (" each" if request.workers > 1 else "") if parts else ""
    return _workers(request.workers) + each


def _workers(count: int) -> str:
    return "1 worker" if count == 1 else f"{count} workers"
