"""The objects of a plain script as the typed tree has them, and back: what orch.training() does, without a run."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from orch_workers.checkpoint.errors import CheckpointError
from orch_workers.training import rng
from orch_workers.training.objects import StateHandler, make_handler
from orch_workers.training.snapshot import Adapters, Snapshot, Stored, plan
from orch_workers.training.tree import TAG

State = Mapping[str, Any]
OWN_PART = "~orch"
PROBLEMS_SHOWN_MAX = 10


def check_names(state: State) -> None:
    """ValueError for what is no mapping from names to objects."""
    if not isinstance(state, Mapping) or not state:
        raise ValueError(
            'the state is a dict of what is to be kept, such as {"model": model, "optimizer": optimizer}'
        )
    for name in state:
        if not isinstance(name, str) or not name or name.startswith(TAG) or not name.isprintable():
            raise ValueError(
                f"{name!r} is no name for a part of the state: printable text that does not begin with ~"
            )


def capture(state: State, step: int, epoch: int | None, metrics: Mapping[str, Any] | None) -> Snapshot:
    """Ready to be copied. UnsupportedStateError, with its path, for a value that no checkpoint can hold."""
    adapters = Adapters()
    handlers, _ = _handlers(state, adapters)
    parts: dict[str, Any] = {handler.name: handler.capture() for handler in handlers}
    parts[OWN_PART] = {
        "kinds": {handler.name: handler.kind for handler in handlers},
        "random": rng.capture(adapters.active()),
    }
    meta = {
        "step": step,
        "epoch": epoch,
        "metrics": {str(name): _metric(value) for name, value in (metrics or {}).items()},
        "kind": "state",
        "frameworks": adapters.frameworks(),
    }
    return plan(parts, adapters.codecs(), meta)


def _handlers(state: State, adapters: Adapters) -> tuple[list[StateHandler], dict[str, Any]]:
    """And the plain values, which have no object to be loaded into."""
    values: dict[str, Any] = {}
    objects = dict(state)
    return [make_handler(name, objects, adapters.active(), values) for name in objects], values


def _metric(value: Any) -> Any:
    number = float(value)
    return number if math.isfinite(number) else str(number)


def load(path: str, into: State | None, *, random: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """(description, values) of the READY slot at `path`; `into` None: everything is a value."""
    adapters = Adapters()
    stored = Stored(path, adapters.codecs())
    try:
        meta = {key: value for key, value in stored.meta.items() if key not in {"tree", "entries"}}
        if into is None:
            names = [name for name in stored.meta["tree"] if name != OWN_PART]
            return meta, {name: _part(stored, name) for name in names}
        return meta, _load_into(stored, into, adapters, random=random)
    finally:
        stored.close()


def _part(stored: Stored, *path: str) -> Any:
    return _decoded(lambda: stored.part(*path), ".".join(path))


def _borrowed(stored: Stored, name: str) -> Any:
    return _decoded(lambda: stored.borrowed(name), name)


def _decoded(decode: Callable[[], Any], path: str) -> Any:
    try:
        return decode()
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}: import its framework first") from error


def _load_into(stored: Stored, into: State, adapters: Adapters, *, random: bool) -> dict[str, Any]:
    handlers, values = _handlers(into, adapters)
    kinds = _part(stored, OWN_PART, "kinds") or {}
    problems = [problem for handler in handlers if (problem := _kind_problem(handler, kinds, stored))]
    fitting = sorted(
        (handler for handler in handlers if _kind_problem(handler, kinds, stored) is None),
        key=lambda handler: handler.order,
    )
    borrowed = {handler.name: _borrowed(stored, handler.name) for handler in fitting}
    for handler in fitting:
        problems += handler.problems(borrowed[handler.name])
    if problems:
        shown = [f"  - {problem}" for problem in problems[:PROBLEMS_SHOWN_MAX]]
        if len(problems) > PROBLEMS_SHOWN_MAX:
            shown.append(f"  - and {len(problems) - PROBLEMS_SHOWN_MAX} more")
        raise CheckpointError(
            f"the checkpoint of step {stored.step} does not fit the objects it should be loaded into:\n"
            + "\n".join(shown)
        )
    for handler in fitting:
        if not handler.restore_in_place(borrowed.pop(handler.name)):
            handler.restore(_part(stored, handler.name))
    states = _part(stored, OWN_PART, "random") if random else None
    if states:
        rng.restore(states, adapters.active())
    return values


def _kind_problem(handler: StateHandler, kinds: Mapping[str, str], stored: Stored) -> str | None:
    name = handler.name
    if name not in stored.meta["tree"]:
        return f"{name} is not in the checkpoint"
    if kinds.get(name, handler.kind) != handler.kind:
        return f"{name} is a {kinds[name]} in the checkpoint, a {handler.kind} here"
    return None
