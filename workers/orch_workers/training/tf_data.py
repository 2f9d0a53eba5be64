"""tf.data: where an iterator is, as bytes or by replay, and which pipelines can be resumed exactly.

A pipeline without state outside its iterator (shuffles, batches, stateless and deterministic functions) is resumed
from the iterator's own state, shuffle buffer included. One with stateful operations (`tf.random.*`,
`tf.random.Generator`, Python functions) is replayed from the start of the pass, with the variables that it uses set
back to that point. A pass starts from its iterator's first state, which is small and holds from which seeds a shuffle
draws, so that the passes after a resume shuffle as they would have.
"""

# ruff: noqa: SLF001 - the inputs, functions and resources of a dataset have no public names

from __future__ import annotations

import importlib
import re
import zlib
from typing import Any, Iterator

from .errors import UnsupportedStateError

STATE_BYTES_MAX = 256 << 20
"""An iterator whose state is larger (a shuffle buffer of images) is replayed instead."""
STATE_KEY = "_STATE"
_COMPRESSION = 1
_POLICY_IGNORE, _POLICY_FAIL = 1, 2
"""tf.data.experimental.ExternalStatePolicy: what to do about state that is not the iterator's own."""

_SHUFFLE_KEY = b"num_random_samples"
"""In the state of an iterator: how many seeds a shuffle has drawn. An input that is at its end is left out of it."""
_KEYS_OF_A_SHUFFLE = 2
_BEGINS_AGAIN = re.compile(r"Repeat|FlatMap|Interleave|Window|Choose|Directed")
"""Steps that may read their input, and so its shuffles, more than once in a pass."""
_PYTHON_OPS = frozenset(("PyFunc", "EagerPyFunc", "PyFuncStateless"))
_HARMLESS = re.compile(
    r"StatefulPartitionedCall|PartitionedCall|If|While|Case|ReadVariableOp|VarHandleOp|ResourceGather(Nd)?|"
    r"VariableShape|VarIsInitializedOp|Assert|Print(V2)?|Placeholder\w*|LookupTable(Find|Size|Export)V2|"
    r"(Mutable|Anonymous)*HashTable(V2)?|\w*Dataset(V\d)?|\w*(MemoryCache|SeedGenerator)\w*|NoOp"
)
"""Operations that TensorFlow calls stateful and that change nothing a resume would have to know."""


def op_is_stateful(name: str) -> bool:
    if _HARMLESS.fullmatch(name):
        return False
    registry = importlib.import_module("tensorflow.python.framework.op_def_registry")
    definition = registry.get(name)
    return bool(definition is not None and definition.is_stateful)


def _steps(dataset: Any) -> Iterator[Any]:
    """The dataset and everything it reads from."""
    seen: set[int] = set()
    waiting = [dataset]
    while waiting:
        one = waiting.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        waiting += list(one._inputs())


def _functions(step: Any) -> list[Any]:
    """The concrete functions that this step of a pipeline calls."""
    return [
        wrapper.function for wrapper in step._functions() if getattr(wrapper, "function", None) is not None
    ]


def _stateful_nodes(function: Any) -> list[Any]:
    definition = function.graph.as_graph_def()
    nodes = list(definition.node)
    for inner in definition.library.function:
        nodes += inner.node_def
    return [node for node in nodes if op_is_stateful(node.op)]


def _is_unseeded(node: Any) -> bool:
    """Both seeds 0 mean a seed from the system."""
    return "seed" in node.attr and not node.attr["seed"].i and not node.attr["seed2"].i


def _is_parallel(step: Any) -> bool:
    calls = getattr(step, "_num_parallel_calls", None)
    config = importlib.import_module("tensorflow.python.framework.config")
    # With deterministic operations TensorFlow calls such functions in order.
    if calls is None or config.is_op_determinism_enabled():
        return False
    number: Any = getattr(calls, "numpy", None)
    return not (callable(number) and number() == 1)


class Pipeline:
    """What can be said of a dataset without reading it."""

    def __init__(self, dataset: Any) -> None:
        self.ops: set[str] = set()
        self.parallel_ops: set[str] = set()
        self.unseeded_ops: set[str] = set()
        self.variables: list[Any] = []
        known: set[int] = set()
        for step in _steps(dataset):
            for function in _functions(step):
                nodes = _stateful_nodes(function)
                found = {node.op for node in nodes}
                self.ops |= found
                self.unseeded_ops |= {node.op for node in nodes if _is_unseeded(node)}
                if found and _is_parallel(step):
                    self.parallel_ops |= found
                for variable in function.graph.variables if found else ():
                    if id(variable) not in known:
                        known.add(id(variable))
                        self.variables.append(variable)
        options = dataset.options()
        unordered = any(getattr(step, "_deterministic", None) == "false" for step in _steps(dataset))
        self.is_unordered = unordered or getattr(options, "deterministic", None) is False
        self.begins_again = any(_BEGINS_AGAIN.search(type(step).__name__) for step in _steps(dataset))
        self.calls_python = bool(self.ops & _PYTHON_OPS)

    def why_inexact(self) -> list[str]:
        found = []
        if self.parallel_ops:
            found.append(
                f"the dataset calls {_listed(self.parallel_ops)} from several threads at once "
                "(num_parallel_calls), so that no two runs draw alike: use stateless operations "
                "(tf.random.stateless_*, seeds from Dataset.random or Dataset.counter), or num_parallel_calls=None"
            )
        if self.unseeded_ops - self.parallel_ops:
            found.append(
                f"the dataset calls {_listed(self.unseeded_ops)} without a seed, so that no two runs draw alike: call "
                "tf.random.set_seed (or keras.utils.set_random_seed) before it is built"
            )
        if self.is_unordered:
            found.append(
                "the dataset has deterministic=False, so the order of its elements depends on timing"
            )
        return found


def _listed(ops: set[str]) -> str:
    return ", ".join(sorted(ops))


def _read(tensorflow: Any, iterator: Any, policy: int) -> bytes:
    variant = tensorflow.raw_ops.SerializeIterator(
        resource_handle=iterator._iterator_resource, external_state_policy=policy
    )
    found: bytes = tensorflow.io.serialize_tensor(variant).numpy()
    return found


def _write(tensorflow: Any, iterator: Any, state: bytes) -> None:
    variant = tensorflow.io.parse_tensor(state, tensorflow.variant)
    tensorflow.raw_ops.DeserializeIterator(resource_handle=iterator._iterator_resource, serialized=variant)


# iterators that a script gives to orch.training() itself


def _is_iterator(tensorflow: Any, value: Any) -> bool:
    return isinstance(value, tensorflow.data.Iterator) and hasattr(value, "_iterator_resource")


def iterator_state(tensorflow: Any, value: Any) -> dict[str, Any] | None:
    """None for what is no iterator. Raises UnsupportedStateError for a state over STATE_BYTES_MAX."""
    if not _is_iterator(tensorflow, value):
        return None
    state = _read(tensorflow, value, _POLICY_IGNORE)
    if len(state) > STATE_BYTES_MAX:
        raise UnsupportedStateError(
            f"the state of a tf.data iterator has {len(state)} bytes (its shuffle buffer), more than the "
            f"{STATE_BYTES_MAX} that a checkpoint takes: give the dataset to run.batches(), which replays it"
        )
    return {STATE_KEY: state}


def put_iterator_state(tensorflow: Any, value: Any, state: dict[str, Any]) -> bool:
    """False for what is no iterator."""
    if not _is_iterator(tensorflow, value):
        return False
    _write(tensorflow, value, state[STATE_KEY])
    return True


def is_cut_short(value: Any, state: dict[str, Any]) -> bool:
    """Whether a shuffle of the iterator's dataset is left out of its state: its input has been read to the end, and
    something between it and a repeat has not asked for more yet.
    """
    dataset = getattr(value, "_dataset", None) if STATE_KEY in state else None
    if dataset is None:
        return False
    shuffles = sum("Shuffle" in type(step).__name__ for step in _steps(dataset))
    repeats = any(_BEGINS_AGAIN.search(type(step).__name__) for step in _steps(dataset))
    return bool(repeats and state[STATE_KEY].count(_SHUFFLE_KEY) < _KEYS_OF_A_SHUFFLE * shuffles)


def why_iterator_inexact(tensorflow: Any, path: str, value: Any) -> list[str]:
    dataset = getattr(value, "_dataset", None) if _is_iterator(tensorflow, value) else None
    if dataset is None:
        return []
    found = Pipeline(dataset)
    reasons = [f"{path}: {reason}" for reason in found.why_inexact()]
    if found.ops and not found.parallel_ops:
        reasons.append(
            f"{path}: its dataset calls {_listed(found.ops)}, whose state is no part of an iterator: give the dataset "
            "to run.batches(), which replays it"
        )
    return reasons


# datasets in run.batches


class DatasetLoader:
    """A tf.data.Dataset as run.batches and model.fit read it: one iterator per pass.

    The iterator of the next pass is made as soon as the present one ends, in undisturbed runs too: its first state is
    what a checkpoint between two passes keeps. No `__dict__`: a search for random generators in a loader ends here.
    """

    __slots__ = ("_current", "_next", "_reads_own_state", "_shuffles", "_start", "_tf", "dataset", "pipeline")

    def __init__(self, tensorflow: Any, dataset: Any) -> None:
        self._tf = tensorflow
        self.dataset = dataset
        self.pipeline = Pipeline(dataset)
        self._next: Any = None
        self._current: Any = None
        self._start: dict[str, Any] | None = None
        self._shuffles = 0
        self._reads_own_state: bool | None = None

    def __iter__(self) -> Iterator[Any]:
        """One pass."""
        try:
            yield from self.open()
        finally:
            self.end()

    def open(self) -> Any:
        """The iterator of the pass that begins, for who counts what is taken from it."""
        if self._next is None:
            self._start = None
        self.start_state()
        self._current, self._next = self._upcoming(), None
        return self._current

    def end(self) -> None:
        """The pass is over."""
        self._current = self._start = None
        self.start_state()

    def start_state(self) -> dict[str, Any]:
        """From where the pass starts that is under way, else the next."""
        if self._start is None:
            state = _read(self._tf, self._upcoming(), _POLICY_IGNORE)
            self._shuffles = state.count(_SHUFFLE_KEY)
            self._start = {
                # A hundred and fifty bytes, much alike, for each place in a shuffle's buffer, which is empty.
                "iterator": zlib.compress(state, _COMPRESSION),
                "variables": [variable.numpy() for variable in self.pipeline.variables],
            }
        return self._start

    def set_start(self, stored: dict[str, Any]) -> None:
        """The next pass starts from there."""
        state = zlib.decompress(stored["iterator"])
        self._shuffles = state.count(_SHUFFLE_KEY)
        _write(self._tf, self._upcoming(), state)
        for variable, value in zip(self.pipeline.variables, stored["variables"]):
            variable.assign(value)
        self._start = stored

    def state(self) -> dict[str, Any]:
        """Where the pass is that is under way."""
        if self._current is None or self._start is None or not self._is_whole(self._current):
            return {"now": None}
        now = _read(self._tf, self._current, _POLICY_IGNORE)
        spent = now.count(_SHUFFLE_KEY) < self._shuffles
        if len(now) > STATE_BYTES_MAX or (spent and self.pipeline.begins_again):
            return {"now": None}
        return {"now": now, "spent": spent}

    def resume(self, stored: dict[str, Any], taken: int) -> int:
        """Brings the next pass, whose start has been set, to where it was; returns how many elements are still to be
        read and dropped.
        """
        if stored.get("now") is None:
            return taken
        _write(self._tf, self._upcoming(), stored["now"])
        if stored["spent"]:
            # Read to its end, the pass no longer says how often its shuffles had drawn a seed. Its start does.
            _write(self._tf, iter(self.dataset), zlib.decompress(self.start_state()["iterator"]))
        return 0

    def _upcoming(self) -> Any:
        if self._next is None:
            self._next = iter(self.dataset)
        return self._next

    def _is_whole(self, iterator: Any) -> bool:
        """Whether the iterator's state is all the state there is."""
        if self._reads_own_state is None:
            try:
                _read(self._tf, iterator, _POLICY_FAIL)
            except self._tf.errors.FailedPreconditionError:
                self._reads_own_state = False
            else:
                self._reads_own_state = not self.pipeline.ops
        return self._reads_own_state


class Datasets:
    """The datasets of a run, each with one DatasetLoader, and what a checkpoint keeps of those between two passes.

    They are known by the order in which they were first read. One that the script made inside the present epoch is
    new in every epoch, and has nothing to go on from.
    """

    def __init__(self) -> None:
        self._loaders: dict[int, DatasetLoader] = {}
        self._kept: list[DatasetLoader] = []
        self._stored: list[dict[str, Any]] = []
        self._mark: int | None = None

    def epoch_begins(self, tensorflow: Any) -> None:
        # Asked for a number, TensorFlow does not start; asked for a tensor it would, and take a GPU's memory.
        ops: Any = (
            importlib.import_module("tensorflow.python.framework.ops") if tensorflow is not None else None
        )
        self._mark = None if ops is None else int(ops.uid())
        self._loaders = {id(loader.dataset): loader for loader in self._kept}

    def loader(self, tensorflow: Any, dataset: Any) -> DatasetLoader:
        known = self._loaders.get(id(dataset))
        if known is not None:
            return known
        made = self._loaders[id(dataset)] = DatasetLoader(tensorflow, dataset)
        if not self._is_new_each_epoch(dataset):
            self._kept.append(made)
            if len(self._kept) <= len(self._stored):
                made.set_start(self._stored[len(self._kept) - 1])
        return made

    def _is_new_each_epoch(self, dataset: Any) -> bool:
        made = _uid(getattr(dataset, "_variant_tensor", None))
        return self._mark is not None and made is not None and made > self._mark

    def to_tree(self) -> list[dict[str, Any]]:
        return [loader.start_state() for loader in self._kept] + self._stored[len(self._kept) :]

    def load(self, stored: list[dict[str, Any]] | None) -> None:
        self._stored = list(stored or ())


def _uid(tensor: Any) -> int | None:
    """Eager tensors are numbered in the order in which they are made."""
    found = getattr(tensor, "_id", None)
    return found if isinstance(found, int) else None


def is_dataset(tensorflow: Any, value: Any) -> bool:
    return tensorflow is not None and isinstance(value, tensorflow.data.Dataset)
