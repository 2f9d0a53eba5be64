"""The arguments of orch.training(): how each is captured, compared with what is stored, and restored."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections import deque
from typing import Any, Callable, Sequence

from .arrays import numpy_module
from .errors import UnsupportedStateError


class StateHandler:
    """One argument. `capture` gives what the typed tree keeps; `restore` takes the same back.

    `problems` says, without changing anything, why the stored state does not fit. `order`: parameters first,
    then optimizers, then what refers to optimizers, then random generators. Arrays in what `problems` and
    `restore_in_place` are given are views of the slot; those given to `restore` are the taker's own.
    """

    kind = "state"
    order = 2
    strict = False
    """Whether what a restoration leaves undone ends the run (`look_after_first_step`)."""
    tell_mismatch: Callable[[str], None] | None = None
    """Told what turns out not to fit after `restore` has returned; then the same is raised where it turned out."""

    tell_inexact: Callable[[str], None] | None = None
    """Told, during a capture, why what is captured cannot be gone on with exactly."""

    def __init__(self, name: str, target: Any) -> None:
        self.name = name
        self.target = target

    def capture(self) -> Any:
        return self.target.state_dict()

    def problems(self, stored: Any) -> list[str]:
        return []

    def restore_in_place(self, borrowed: Any) -> bool:
        """Copies what is stored into the memory that is there. False: nothing was done, `restore` must do it."""
        return False

    def restore(self, stored: Any) -> None:
        self.target.load_state_dict(stored)

    def places(self) -> list[dict[str, Any]]:
        """Of tensors that are divided over the ranks, which piece this one holds (sharded.py)."""
        return []

    follows_parameters = False
    """Whether its state belongs to the parameters of another argument, one by one."""

    def by_name(self, stored: Any) -> dict[str, Any] | None:
        """The tensors of what is stored (None: of what is live) by name; None where it is no set of named tensors."""
        return None

    def put_by_name(self, tensors: dict[str, Any]) -> None:
        """Sets those tensors, whose shapes fit, and leaves the others as they are."""
        raise NotImplementedError

    def why_inexact(self) -> list[str]:
        """Reasons, as sentences, why this argument cannot be put back exactly."""
        return []

    def look_after_first_step(self) -> list[str]:
        """Sentences about what a restoration has left undone by the time the first step is over."""
        return []


class ArrayHandler(StateHandler):
    """A NumPy array; loaded in place."""

    kind = "ndarray"

    def capture(self) -> Any:
        return self.target

    def problems(self, stored: Any) -> list[str]:
        return compare_arrays(self.name, {"": stored}, {"": self.target})

    def restore_in_place(self, borrowed: Any) -> bool:
        self.target[...] = borrowed
        return True


class GeneratorHandler(StateHandler, ABC):
    """A random generator: restored after everything that may draw from it."""

    order = 3

    @abstractmethod
    def reseed(self, seed: int) -> None:
        """Puts the generator where `seed` alone leads to."""


class PythonRandomHandler(GeneratorHandler):
    """A random.Random."""

    kind = "random.Random"

    def capture(self) -> Any:
        return self.target.getstate()

    def restore(self, stored: Any) -> None:
        self.target.setstate(stored)

    def reseed(self, seed: int) -> None:
        self.target.seed(seed)


class NumpyGeneratorHandler(GeneratorHandler):
    """A numpy.random.Generator or BitGenerator."""

    kind = "numpy.random.Generator"

    @property
    def _bits(self) -> Any:
        return getattr(self.target, "bit_generator", self.target)

    def capture(self) -> Any:
        return self._bits.state

    def problems(self, stored: Any) -> list[str]:
        live = self._bits.state["bit_generator"]
        if stored["bit_generator"] == live:
            return []
        return [f"{self.name} is a {stored['bit_generator']} in the checkpoint, a {live} in this script"]

    def restore(self, stored: Any) -> None:
        self._bits.state = stored

    def reseed(self, seed: int) -> None:
        self._bits.state = type(self._bits)(seed).state


class NumpyRandomStateHandler(GeneratorHandler):
    """A numpy.random.RandomState, the older kind."""

    kind = "numpy.random.RandomState"

    def capture(self) -> Any:
        return self.target.get_state(legacy=False)

    def restore(self, stored: Any) -> None:
        self.target.set_state(stored)

    def reseed(self, seed: int) -> None:
        self.target.seed(seed % (1 << 32))


class ValueHandler(StateHandler):
    """A plain value. It lives in `Run.values`; mutable containers are restored in place, so that the script's
    own name for them stays right.
    """

    kind = "value"

    def __init__(self, name: str, values: dict[str, Any]) -> None:
        super().__init__(name, values[name])
        self._values = values

    def capture(self) -> Any:
        return self._values[self.name]

    def restore(self, stored: Any) -> None:
        live = self._values[self.name]
        if type(live) is not type(stored):
            self._values[self.name] = stored
        elif isinstance(live, (dict, set)):
            live.clear()
            live.update(stored)
        elif isinstance(live, (list, bytearray)):
            live[:] = stored
        elif isinstance(live, deque) and live.maxlen == stored.maxlen:
            live.clear()
            live.extend(stored)
        else:
            self._values[self.name] = stored


def random_handler(name: str, value: Any) -> Any:
    """The handler of a random generator of Python or NumPy, or None."""
    if isinstance(value, random.Random) and not isinstance(value, random.SystemRandom):
        return PythonRandomHandler(name, value)
    numpy = numpy_module()
    if numpy is not None:
        if isinstance(value, (numpy.random.Generator, numpy.random.BitGenerator)):
            return NumpyGeneratorHandler(name, value)
        if isinstance(value, numpy.random.RandomState):
            return NumpyRandomStateHandler(name, value)
    return None


def make_handler(
    name: str, everything: dict[str, Any], adapters: Sequence[Any], values: dict[str, Any]
) -> StateHandler:
    """Raises UnsupportedStateError for an argument that is nothing orch can keep."""
    value = everything[name]
    if isinstance(value, StateHandler):  # of an integration of orch's own
        return value
    for adapter in adapters:
        handler: StateHandler = adapter.handler(name, value, everything)
        if handler is not None:
            return handler
    found: StateHandler = random_handler(name, value)
    if found is not None:
        return found
    if callable(getattr(value, "state_dict", None)) and not isinstance(value, type):
        if callable(getattr(value, "load_state_dict", None)):
            return StateHandler(name, value)
        raise UnsupportedStateError(
            f"{name}: {type(value).__name__} has state_dict() but no load_state_dict()"
        )
    numpy = numpy_module()
    if numpy is not None and type(value) is numpy.ndarray:
        return ArrayHandler(name, value)
    values[name] = value
    return ValueHandler(name, values)


def compare_arguments(kinds: dict[str, str], live: dict[str, str]) -> tuple[list[str], list[str]]:
    """What keeps a checkpoint whose arguments are of `kinds` from being loaded into those of a script, and what is
    only worth saying: a sentence each.
    """
    found, warnings = [], []
    for name, kind in kinds.items():
        if name in live and live[name] != kind:
            found.append(f"{name} is a {kind} in the checkpoint, a {live[name]} in this script")
        elif name not in live and kind != "value":
            found.append(f"{name} ({kind}) is in the checkpoint but is not given to orch.training()")
        elif name not in live:
            warnings.append(f"the value {name} is in the checkpoint and not in the script: it is dropped")
    for name, kind in live.items():
        if name not in kinds and kind != "value":
            found.append(f"{name} ({kind}) is given to orch.training() but is not in the checkpoint")
        elif name not in kinds:
            warnings.append(f"the value {name} is not in the checkpoint: it starts as the script gives it")
    return found, warnings


def compare_arrays(name: str, stored: Any, live: Any) -> list[str]:
    """Differences in names, shapes and dtypes between two flat dicts of arrays, one sentence each."""
    found = [
        f"{_joined(name, key)} is in the checkpoint but not in this script"
        for key in stored
        if key not in live
    ]
    for key, value in live.items():
        path = _joined(name, key)
        if key not in stored:
            found.append(f"{path} is in this script but not in the checkpoint")
        elif hasattr(value, "dtype") and hasattr(stored[key], "dtype"):
            found += _compare(path, stored[key], value)
    return found


def _compare(path: str, stored: Any, live: Any) -> list[str]:
    try:
        live_shape = list(live.shape)
    except RuntimeError:  # a lazy module that has not run yet takes any shape
        return []
    if list(stored.shape) != live_shape:
        return [f"{path} has shape {list(stored.shape)} in the checkpoint, {live_shape} in this script"]
    if stored.dtype != live.dtype:
        return [f"{path} is {stored.dtype} in the checkpoint, {live.dtype} in this script"]
    return []


def _joined(name: str, key: str) -> str:
    return f"{name}.{key}" if key else name
