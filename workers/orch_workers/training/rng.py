"""Random states: Python's, NumPy's and the framework's global ones, and generators found in a loader."""

from __future__ import annotations

import array
import random
import types
from typing import Any, Sequence

from .arrays import numpy_module
from .objects import GeneratorHandler, random_handler

_OBJECTS_VISITED_MAX = 2_000
_CONTAINER_ITEMS_MAX = 64
_DEPTH_MAX = 6
_LEAVES = (str, bytes, int, float, type, types.ModuleType, types.FunctionType)


def capture(adapters: Sequence[Any]) -> dict[str, Any]:
    """All global random states, as the typed tree keeps them."""
    version, words, gauss = random.getstate()
    found: dict[str, Any] = {"python": (version, array.array("I", words).tobytes(), gauss)}
    numpy = numpy_module()
    if numpy is not None:
        found["numpy"] = numpy.random.get_state(legacy=False)
    for adapter in adapters:
        found[adapter.framework[0]] = adapter.capture_random()
    return found


def restore(stored: dict[str, Any], adapters: Sequence[Any]) -> list[str]:
    """Sets the global random states; returns what could not be set, as sentences."""
    version, words, gauss = stored["python"]
    unpacked = array.array("I")
    unpacked.frombytes(words)
    random.setstate((version, tuple(unpacked), gauss))
    problems = []
    numpy = numpy_module()
    if "numpy" in stored and numpy is not None:
        numpy.random.set_state(stored["numpy"])
    for adapter in adapters:
        name = adapter.framework[0]
        problem = adapter.restore_random(stored[name]) if name in stored else None
        if problem:
            problems.append(problem)
    return problems


def capture_host(adapters: Sequence[Any]) -> dict[str, Any]:
    """Like `capture`, without the devices: what loader code in this process can draw from."""
    version, words, gauss = random.getstate()
    found: dict[str, Any] = {"python": (version, words, gauss)}
    numpy = numpy_module()
    if numpy is not None:
        found["numpy"] = numpy.random.get_state(legacy=False)
    for adapter in adapters:
        found[adapter.framework[0]] = adapter.capture_random_host()
    return found


def restore_host(stored: dict[str, Any], adapters: Sequence[Any]) -> None:
    random.setstate(stored["python"])
    numpy = numpy_module()
    if "numpy" in stored and numpy is not None:
        numpy.random.set_state(stored["numpy"])
    for adapter in adapters:
        if adapter.framework[0] in stored:
            adapter.restore_random_host(stored[adapter.framework[0]])


def branch_host(adapters: Sequence[Any]) -> None:
    """Puts each global generator of this process on a stream that follows from its own state, and from
    nothing else: a script that seeds only torch stays repeatable in torch.
    """
    random.seed(random.getrandbits(64))
    numpy = numpy_module()
    if numpy is not None:
        numpy.random.seed(int(numpy.random.randint(0, 1 << 32, dtype=numpy.uint64)))
    for adapter in adapters:
        adapter.seed_host(adapter.draw_seed_host())


def seed_host(seed: int, adapters: Sequence[Any]) -> None:
    """Seeds the global generators of this process, devices left alone."""
    random.seed(seed)
    numpy = numpy_module()
    if numpy is not None:
        numpy.random.seed(seed % (1 << 32))
    for adapter in adapters:
        adapter.seed_host(seed)


def seed_all(seed: int, adapters: Sequence[Any]) -> None:
    """Seeds the global generators of this process and of its devices."""
    seed_host(seed, adapters)
    for adapter in adapters:
        adapter.seed_devices(seed)


def generator_handlers(root: Any, adapters: Sequence[Any]) -> dict[str, GeneratorHandler]:
    """The random generators that a loader holds (its own, its sampler's, its dataset's, a transform's), by
    path.
    """
    search = _Search(adapters)
    search.visit(root, "loader", 0)
    return search.found


class _Search:
    """Walks instance attributes and small containers; bounded, since datasets can hold anything."""

    def __init__(self, adapters: Sequence[Any]) -> None:
        self.found: dict[str, GeneratorHandler] = {}
        self._adapters = adapters
        self._seen: dict[int, Any] = {}

    def visit(self, value: Any, path: str, depth: int) -> None:
        if value is None or isinstance(value, _LEAVES):
            return
        if id(value) in self._seen or len(self._seen) >= _OBJECTS_VISITED_MAX or depth > _DEPTH_MAX:
            return
        self._seen[id(value)] = value
        handler = self._handler(path, value)
        if handler is not None:
            self.found[path] = handler
            return
        if isinstance(value, (list, tuple)):
            for index, item in enumerate(value[:_CONTAINER_ITEMS_MAX]):
                self.visit(item, f"{path}.{index}", depth + 1)
        elif isinstance(value, dict):
            for key in list(value)[:_CONTAINER_ITEMS_MAX]:
                self.visit(value[key], f"{path}.{key}", depth + 1)
        attributes = getattr(value, "__dict__", None)
        if isinstance(attributes, dict):
            for key in sorted(attributes):
                self.visit(attributes[key], f"{path}.{key}", depth + 1)
        self._visit_slots(value, path, depth)

    def _visit_slots(self, value: Any, path: str, depth: int) -> None:
        wrapped: Any | None = getattr(value, "__self__", None)  # a bound method as transform or collate_fn
        if wrapped is not None and not isinstance(wrapped, types.ModuleType):
            self.visit(wrapped, f"{path}.__self__", depth + 1)

    def _handler(self, path: str, value: Any) -> GeneratorHandler | None:
        found: GeneratorHandler | None = random_handler(path, value)
        for adapter in self._adapters:
            if found is None:
                candidate = adapter.handler(path, value, {})
                found = candidate if isinstance(candidate, GeneratorHandler) else None
        return found
