"""TensorFlow objects as arguments of orch.training(): captured as a graph, restored as far as they exist, and the
rest when it comes to be.

Keras layers make their variables when they are first called, optimizers when they first apply gradients. What is
stored for those waits here, and is put in at the moment the object is attached to its parent: TensorFlow asks every
trackable for such waiting positions (`_deferred_dependencies`), tf.train.Checkpoint's and ours alike. What waits goes
on into the next checkpoints, so that a layer that is used in a later phase only keeps what it had.
"""

# ruff: noqa: SLF001 - waiting for an object that does not exist yet goes through TensorFlow's own members

from __future__ import annotations

from typing import Any

from .errors import MismatchError
from .objects import StateHandler
from .tf_data import is_cut_short, iterator_state, put_iterator_state, why_iterator_inexact
from .tf_graph import VARIABLE, children, is_trackable, misfit, put_state, state_of, walk

LISTED_MAX = 10
UID = 0
"""TensorFlow sorts waiting restorations by such a number, newest first; ours comes last, and so counts."""


class GraphHandler(StateHandler):
    """One argument: a trackable, or a list or dict of them."""

    kind = "trackable"
    order = 0

    def __init__(self, tensorflow: Any, name: str, target: Any) -> None:
        super().__init__(name, target)
        self._tf = tensorflow
        self._pending: _Pending | None = None
        for node in walk(tensorflow, target, name):  # refuses now what no save could keep
            _state(tensorflow, node.value)

    def capture(self) -> Any:
        if self._pending is not None:
            self._pending.match_again()
        pending = self._pending
        nodes: list[dict[str, Any]] = []
        values: dict[str, Any] = {}
        numbers: dict[int, int] = {}
        for node in walk(self._tf, self.target, self.name):
            numbers[id(node.value)] = len(nodes)
            state = _state(self._tf, node.value)
            if self.tell_inexact is not None and is_cut_short(node.value, state):
                self.tell_inexact(
                    f"{_joined(self.name, node.path)}: saved between two passes that its dataset makes, it cannot tell "
                    "how the next ones shuffle: repeat right after shuffle, or give the dataset to run.batches()"
                )
            keys = _named(node.path, state, values)
            nodes.append({"path": node.path, "children": node.children, "values": keys})
        if pending is not None and not pending.is_over:
            pending.carry(nodes, values, numbers)
        return {"nodes": nodes, "values": values}

    def problems(self, stored: Any) -> list[str]:
        found: list[str] = []
        matched: set[int] = set()
        waiting = [(0, self.target)]
        while waiting:
            number, live = waiting.pop()
            if number in matched:
                continue
            matched.add(number)
            node = stored["nodes"][number]
            state = {key: stored["values"][name] for key, name in node["values"].items()}
            why = misfit(self._tf, live, state) if state else None
            if why is not None:
                found.append(f"{_joined(self.name, node['path'])} {why}")
            edges = children(self._tf, live, _joined(self.name, node["path"]))
            waiting += [(child, edges[edge]) for edge, child in node["children"].items() if edge in edges]
        return sorted(found)

    def restore(self, stored: Any) -> None:
        self._pending = _Pending(self._tf, self.name, self.target, stored)
        self._pending.tell = self.tell_mismatch
        self._pending.match(0, self.target)
        self._pending.match_again()

    def by_name(self, stored: Any) -> dict[str, Any] | None:
        state = self.capture() if stored is None else stored
        return {
            node["values"][VARIABLE]: state["values"][node["values"][VARIABLE]]
            for node in state["nodes"]
            if VARIABLE in node["values"]
        }

    def put_by_name(self, tensors: dict[str, Any]) -> None:
        values: dict[str, Any] = {}
        for node in walk(self._tf, self.target, self.name):
            name = _named(node.path, _state(self._tf, node.value), values).get(VARIABLE)
            if name in tensors:
                put_state(self._tf, node.value, {VARIABLE: tensors[name]})

    def why_inexact(self) -> list[str]:
        return [
            reason
            for node in walk(self._tf, self.target, self.name)
            for reason in why_iterator_inexact(self._tf, _joined(self.name, node.path), node.value)
        ]

    def look_after_first_step(self) -> list[str]:
        """Called when the first step after a restoration is over, by which time what a step needs exists. Sentences
        about what has not been matched; with `strict` MismatchError.
        """
        pending = self._pending
        if pending is None:
            return []
        pending.match_again()
        unmatched, fresh = pending.unmatched(), pending.unknown()
        found = []
        if unmatched:
            found.append(
                f"{self.name}: nothing in this script has taken {_listed(unmatched)} out of the checkpoint so far; it "
                "is kept, and put in when such an object appears"
            )
        if fresh:
            found.append(
                f"{self.name}: the checkpoint has nothing for {_listed(fresh)}: as the script made it"
            )
        if found and self.strict:
            raise MismatchError("that was restored (strict=True)", found)
        return found


class _Position:
    """A stored object that waits for its name, in the shape in which TensorFlow keeps such things."""

    def __init__(self, pending: _Pending, number: int) -> None:
        self.checkpoint = pending
        self.number = number

    def restore(self, trackable: Any, *_: Any, **__: Any) -> None:
        self.checkpoint.match(self.number, trackable)

    def is_simple_variable(self) -> bool:
        """True would make TensorFlow read the value from a file of its own."""
        return False


class _Pending:
    """One restored graph: which of its objects have been found, and what is left."""

    restore_uid = UID

    def __init__(self, tensorflow: Any, name: str, root: Any, stored: Any) -> None:
        self._tf = tensorflow
        self._name = name
        self._root = root
        self._nodes = stored["nodes"]
        self._values: dict[str, Any] = dict(stored["values"])
        self._taken: dict[tuple[int, int], Any] = {}
        """With the objects, so that no other gets the identity of one that was."""
        self._live: dict[int, Any] = {}
        self._deferred: set[tuple[int, str]] = set()
        self._slots_watched: list[Any] = []
        self.tell: Any = None
        self.is_over = False

    def match(self, number: int, live: Any) -> None:
        """`live` is the stored object `number`: gives it its state, and goes on to its children."""
        if self.is_over:
            return
        waiting = [(number, live)]
        while waiting:
            at, value = waiting.pop()
            if (at, id(value)) in self._taken:
                continue
            self._taken[at, id(value)] = value
            self._live.setdefault(at, value)
            node = self._nodes[at]
            self._put(node, value)
            edges = children(self._tf, value, _joined(self._name, node["path"]))
            for edge, child in node["children"].items():
                if edge in edges:
                    waiting.append((child, edges[edge]))
                else:
                    self._defer(value, at, edge, child)

    def _put(self, node: dict[str, Any], value: Any) -> None:
        state = {key: self._values[name] for key, name in node["values"].items()}
        if not state:
            return
        why = misfit(self._tf, value, state)
        if why is not None:
            error = MismatchError("that was restored", [f"{_joined(self._name, node['path'])} {why}"])
            if self.tell is not None:  # Keras makes another error out of this one, and a script may catch it
                self.tell(str(error))
            raise error
        if not put_iterator_state(self._tf, value, state):
            put_state(self._tf, value, state)

    def _defer(self, parent: Any, number: int, edge: str, child: int) -> None:
        if (number, edge) in self._deferred:
            return
        self._deferred.add((number, edge))
        if edge.startswith("slot."):
            self._watch_slots(parent)
        elif is_trackable(self._tf, parent):
            parent._maybe_initialize_trackable()
            parent._deferred_dependencies.setdefault(edge, []).append(_Position(self, child))

    def _watch_slots(self, optimizer: Any) -> None:
        """A tf.compat.v1 optimizer makes its slots right before it first uses them."""
        if any(optimizer is known for known in self._slots_watched):
            return
        self._slots_watched.append(optimizer)
        create = optimizer._create_slots

        def create_and_restore(variables: Any) -> None:
            create(variables)
            self.match_again()

        optimizer._create_slots = create_and_restore

    def match_again(self) -> None:
        """Looks once more at every object that misses children: not all that comes later is announced."""
        if self.is_over:
            return
        for number, live in list(self._live.items()):
            node = self._nodes[number]
            missing = [(edge, child) for edge, child in node["children"].items() if child not in self._live]
            if not missing:
                continue
            edges = children(self._tf, live, _joined(self._name, node["path"]))
            for edge, child in missing:
                if edge in edges:
                    self.match(child, edges[edge])
        if not self.unmatched():
            self.is_over = True
            self._values.clear()

    def unmatched(self) -> list[str]:
        """Paths of what is stored and has found no object."""
        return [
            _joined(self._name, node["path"])
            for number, node in enumerate(self._nodes)
            if node["values"] and number not in self._live
        ]

    def unknown(self) -> list[str]:
        """Paths of variables that the checkpoint did not have."""
        known = {id(value) for value in self._live.values()}
        known.update(id(value) for value in self._taken.values())
        return [
            _joined(self._name, node.path)
            for node in walk(self._tf, self._root, self._name)
            if id(node.value) not in known and VARIABLE in _state(self._tf, node.value)
        ]

    def carry(self, nodes: list[dict[str, Any]], values: dict[str, Any], numbers: dict[int, int]) -> None:
        """Adds to a captured graph what still waits, below the objects that it waits at. `numbers`: of live objects,
        by identity.
        """
        carried: dict[int, int] = {}

        def number_of(stored: int) -> int:
            live = self._live.get(stored)
            if live is not None and id(live) in numbers:
                return numbers[id(live)]
            if stored not in carried:
                node = self._nodes[stored]
                state = {key: self._values[name] for key, name in node["values"].items()}
                carried[stored] = len(nodes)
                made: dict[str, Any] = {"path": node["path"], "children": {}, "values": {}}
                nodes.append(made)
                made["values"] = _named(node["path"], state, values)
                made["children"] = {edge: number_of(child) for edge, child in node["children"].items()}
            return carried[stored]

        for number, live in self._live.items():
            place = numbers.get(id(live))
            if place is None:
                continue
            for edge, child in self._nodes[number]["children"].items():
                if edge not in nodes[place]["children"]:
                    nodes[place]["children"] = {**nodes[place]["children"], edge: number_of(child)}


def _state(tensorflow: Any, value: Any) -> dict[str, Any]:
    found = iterator_state(tensorflow, value)
    return state_of(tensorflow, value) if found is None else found


def _named(path: str, state: dict[str, Any], values: dict[str, Any]) -> dict[str, str]:
    """Puts the state into `values` under names of its own; returns which is where."""
    keys: dict[str, str] = {}
    for key, item in state.items():
        name = wanted = path if path and key == VARIABLE else f"{path}/{key}".lstrip("/")
        number = 1
        while name in values:
            number += 1
            name = f"{wanted}~{number}"
        values[name] = item
        keys[key] = name
    return keys


def _joined(name: str, path: str) -> str:
    return f"{name}.{path}" if path else name


def _listed(paths: list[str]) -> str:
    more = len(paths) - LISTED_MAX
    return ", ".join(paths[:LISTED_MAX]) + (f" and {more} more" if more > 0 else "")
