"""TensorFlow's object graph: what hangs on a trackable, by the names that tf.train.Checkpoint has for it.

An argument's state is ``{"nodes": [{"path", "children": {name: node}, "values": [key]}], "values": {name: value}}``:
the objects in the order of a walk from the argument, each with the edges to its children, so that an object with two
names is stored once and is found again by either; and what they hold, named by the first path that leads there.
Nothing goes through TensorFlow's own file interface.
"""

# ruff: noqa: SLF001 - the edges of the graph and the state of an object are methods that begin with an underscore

from __future__ import annotations

import sys
from collections import deque
from typing import Any, Iterator

from .arrays import numpy_module
from .errors import UnsupportedStateError

VARIABLE = "VARIABLE_VALUE"
"""TensorFlow's own name for what a variable holds."""
OBJECTS_MAX = 1_000_000
CONTAINERS = (list, tuple, dict)

Edges = Any
"""dict[str, Any]: the children of an object by name."""


def tensorflow_module() -> Any:
    """The user's TensorFlow if it has been imported to its end, else None."""
    found = sys.modules.get("tensorflow")
    return found if hasattr(getattr(found, "__internal__", None), "tracking") else None


def keras_module() -> Any:
    """The user's Keras 3 if it has been imported to its end, else None."""
    found = sys.modules.get("keras")
    return found if hasattr(found, "callbacks") and hasattr(found, "KerasTensor") else None


def is_trackable(tensorflow: Any, value: Any) -> bool:
    return isinstance(value, tensorflow.__internal__.tracking.Trackable) and not isinstance(value, type)


def is_keras_state(value: Any) -> bool:
    """Keras objects with variables that TensorFlow does not track: metrics and seed generators."""
    keras = keras_module()
    if keras is None:
        return False
    return isinstance(value, (keras.metrics.Metric, keras.random.SeedGenerator))


def holds_trackable(tensorflow: Any, value: Any, depth: int = 3) -> bool:
    """Whether it is such an object, or a list or dict with one in it."""
    if is_trackable(tensorflow, value) or is_keras_state(value):
        return True
    if not isinstance(value, CONTAINERS) or not depth:
        return False
    items = value.values() if isinstance(value, dict) else value
    return any(holds_trackable(tensorflow, item, depth - 1) for item in items)


def children(tensorflow: Any, value: Any, path: str) -> Edges:
    """What hangs on `value`. Raises UnsupportedStateError, with the path, for what is no part of such a graph."""
    if is_trackable(tensorflow, value):
        try:
            found = {
                name: child
                for name, child in value._trackable_children().items()
                if is_trackable(tensorflow, child)
            }
        except (
            ValueError
        ) as error:  # a list that the script has changed in its middle, a dict with other keys
            raise UnsupportedStateError(f"{path}: {error}") from error
        keras = keras_module()
        if keras is not None and isinstance(value, keras.optimizers.Optimizer):
            # The model's own. An optimizer that is first used in a later phase of a training would, when it meets
            # them, set them back to what they were.
            found.pop("_trainable_variables", None)
        found.update(_keras_children(value))
        found.update(_slots(value))
        return found
    if is_keras_state(value):
        seeds = isinstance(value, keras_module().random.SeedGenerator)
        variables = [value.state] if seeds else value.variables
        return {str(index): variable for index, variable in enumerate(variables)}
    if isinstance(value, dict):
        odd = next((key for key in value if not isinstance(key, str)), None)
        if odd is not None:
            raise UnsupportedStateError(f"{path}: a dict with TensorFlow objects needs str keys, not {odd!r}")
        return _checked(tensorflow, value, path)
    if isinstance(value, (list, tuple)):
        return _checked(tensorflow, {str(index): item for index, item in enumerate(value)}, path)
    return {}


def _checked(tensorflow: Any, items: Edges, path: str) -> Edges:
    for name, item in items.items():
        if not (is_trackable(tensorflow, item) or is_keras_state(item) or isinstance(item, CONTAINERS)):
            raise UnsupportedStateError(refusal(f"{path}.{name}", item, "a list or dict with"))
    return items


TAKEN = (
    "what tf.train.Checkpoint takes: tf.Variable, tf.Module, Keras layers, models, optimizers and metrics, "
    "tf.random.Generator, tables, iter(dataset), and lists and str-keyed dicts of them"
)


def refusal(path: str, value: Any, inside: str = "") -> str:
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    where = f", and {inside} TensorFlow objects may hold nothing else" if inside else ""
    return (
        f"{path} is a {kind}, which TensorFlow does not track{where}: pass {TAKEN}; numbers, strings and what "
        "else is plain are arguments of their own"
    )


def _keras_children(value: Any) -> Edges:
    """Dropout's seeds and metrics are no children for TensorFlow, and a run without them is another run."""
    found: Edges = {}
    for index, generator in enumerate(getattr(value, "_seed_generators", None) or ()):
        found[f"seed_generators.{index}"] = generator
    if keras_module() is not None and isinstance(value, keras_module().Layer):
        for index, metric in enumerate(getattr(value, "metrics", None) or value._metrics):
            found[f"metrics.{index}"] = metric
    return found


def _slots(value: Any) -> Edges:
    """The slot variables of a tf.compat.v1 optimizer, in the order in which they were made."""
    slots = getattr(value, "_slots", None)
    if not isinstance(slots, dict) or not callable(getattr(value, "get_slot_names", None)):
        return {}
    return {
        f"slot.{name}.{index}": slot
        for name in sorted(slots)
        for index, slot in enumerate(slots[name].values())
    }


class Node:
    """One object, with its children by number."""

    def __init__(self, path: str, value: Any) -> None:
        self.path = path
        self.value = value
        self.children: dict[str, int] = {}


def walk(tensorflow: Any, root: Any, name: str) -> Iterator[Node]:
    """Every object once, breadth first; `children` of a node are complete when all has been walked."""
    numbers = {id(root): 0}
    first = Node("", root)
    waiting = deque([first])
    nodes = 1
    while waiting:
        node = waiting.popleft()
        for edge, child in children(tensorflow, node.value, f"{name}.{node.path}".rstrip(".")).items():
            number = numbers.get(id(child))
            if number is None:
                number = numbers[id(child)] = nodes
                nodes += 1
                if nodes > OBJECTS_MAX:
                    raise UnsupportedStateError(f"{name}: more than {OBJECTS_MAX} objects hang on it")
                waiting.append(Node(f"{node.path}/{edge}".lstrip("/"), child))
            node.children[edge] = number
        yield node


def is_variable(tensorflow: Any, value: Any) -> bool:
    return isinstance(value, tensorflow.Variable) or _keras_variable(value) is not None


def _keras_variable(value: Any) -> Any:
    """The Keras variable that `value` is, or None."""
    keras = keras_module()
    return value if keras is not None and isinstance(value, keras.Variable) else None


def plain_variable(value: Any) -> Any:
    """The TensorFlow variable behind one of Keras; None while it has not been given a first value."""
    return value._value if _keras_variable(value) is not None else value


def state_of(tensorflow: Any, value: Any) -> dict[str, Any]:
    """What the object itself holds, as eager tensors; {} for most."""
    if is_variable(tensorflow, value):
        variable = plain_variable(value)
        return {} if variable is None else {VARIABLE: variable.value()}
    base = tensorflow.__internal__.tracking.Trackable
    if isinstance(value, CONTAINERS) or not is_trackable(tensorflow, value):
        return {}
    if type(value)._serialize_to_tensors is not base._serialize_to_tensors:
        found: dict[str, Any] = value._serialize_to_tensors()
        return found
    if type(value)._gather_saveables_for_checkpoint is not base._gather_saveables_for_checkpoint:
        raise UnsupportedStateError(
            f"a {type(value).__module__}.{type(value).__qualname__} can only be saved through TensorFlow's own files"
        )
    return {}


def put_state(tensorflow: Any, value: Any, state: dict[str, Any]) -> None:
    """The reverse of `state_of`; takes NumPy arrays. Also inside a tf.function that is being traced."""
    with tensorflow.init_scope():
        if not is_variable(tensorflow, value):
            value._restore_from_tensors({key: tensorflow.constant(item) for key, item in state.items()})
            return
        variable = plain_variable(value)
        if variable is not None:
            # A copy of its own: TensorFlow may take over the array's memory, and two variables that had the same
            # memory when they were saved (`target.assign(online)`) come back as one array.
            variable.assign(numpy_module().array(state[VARIABLE]))
            return
        # A Keras variable inside a stateless scope gets its first value later: then it shall be this one.
        stored = state[VARIABLE]
        value._initializer = lambda *_, **__: tensorflow.constant(stored)


def misfit(tensorflow: Any, value: Any, state: dict[str, Any]) -> str | None:
    """Why the object cannot take that state, as the end of a sentence."""
    if not is_variable(tensorflow, value):
        return None
    stored = state.get(VARIABLE)
    if stored is None:
        return "holds no variable in the checkpoint, one in this script"
    shape = tensorflow.TensorShape(value.shape)
    if not shape.is_compatible_with(stored.shape):
        return f"has shape {list(stored.shape)} in the checkpoint, {shape.as_list()} in this script"
    live = tensorflow.as_dtype(value.dtype)
    there = tensorflow.as_dtype(stored.dtype) if stored.dtype != object else tensorflow.string
    if live != there:
        return f"is {there.name} in the checkpoint, {live.name} in this script"
    return None
