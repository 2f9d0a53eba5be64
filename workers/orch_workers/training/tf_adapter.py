"""Everything the rest of the training side wants to know of TensorFlow. Made only when the script has imported it."""

# ruff: noqa: SLF001 - the eager context's seed and generator have no public names

from __future__ import annotations

import importlib
import sys
from typing import Any, Sequence

from .arrays import numpy_module
from .errors import UnsupportedStateError
from .objects import StateHandler
from .tf_graph import holds_trackable, keras_module, refusal
from .tf_objects import GraphHandler
from .tf_tensors import EagerTensorCodec
from .tree import Codec

_SEED_BITS = 31
"""TensorFlow's operations take seeds of so many bits."""


class TensorFlowAdapter:
    def __init__(self, tensorflow: Any) -> None:
        self._tf = tensorflow
        self.codec: Codec = EagerTensorCodec(tensorflow, numpy_module())
        self.framework = ("tensorflow", str(tensorflow.__version__))

    def handler(self, name: str, value: Any, everything: dict[str, Any]) -> StateHandler | None:
        tensorflow = self._tf
        torch = sys.modules.get("torch")
        if torch is not None and hasattr(torch, "nn") and isinstance(value, torch.nn.Module):
            return None
        if holds_trackable(tensorflow, value):
            return GraphHandler(tensorflow, name, value)
        if tensorflow.is_tensor(value) or hasattr(value, "get_concrete_function"):
            raise UnsupportedStateError(refusal(name, value))
        return None

    def watches(self, handlers: Sequence[StateHandler]) -> list[Any]:
        return []

    def capture_random(self) -> dict[str, Any]:
        """The global seed with its generator of operation seeds, and the global generators of TensorFlow and Keras
        where there are such.
        """
        context = _context()
        generator = getattr(context, "_rng", None)
        found: dict[str, Any] = {
            "seed": _plain(context._seed),
            "operations": None if generator is None else generator.getstate(),
        }
        with self._tf.init_scope():  # out of a graph that is being built
            if self._tf.executing_eagerly():
                shared, seeds = _global_generator(), _keras_seeds()
                if shared is not None:
                    found["generator"] = shared.state.numpy()
                if seeds is not None:
                    found["keras"] = seeds.state.value.numpy()
        return found

    def restore_random(self, stored: dict[str, Any]) -> str | None:
        """Returns what could not be restored, as a sentence."""
        self.restore_random_host(stored)
        context = _context()
        if stored["operations"] is not None and getattr(context, "_rng", None) is None:
            self._tf.random.set_seed(stored["seed"])
        if stored["operations"] is not None:
            context._seed = stored["seed"]
            context._rng.setstate(stored["operations"])
        with self._tf.init_scope():
            if not self._tf.executing_eagerly():
                return None
            if "generator" in stored:
                self._tf.random.get_global_generator().state.assign(stored["generator"])
            seeds = _keras_seeds(make=True) if "keras" in stored else None
            if seeds is not None:
                seeds.state.assign(stored["keras"])
        return None

    def capture_random_host(self) -> Any:
        """Nothing: a dataset's code draws from the states that `capture_random` has, and is replayed with them."""
        return None

    def restore_random_host(self, stored: Any) -> None:
        """See `capture_random_host`."""

    def seed_host(self, seed: int) -> None:
        """See `capture_random_host`."""

    def seed_devices(self, seed: int) -> None:
        """See `capture_random_host`."""

    def draw_seed_host(self) -> int:
        return 0


def _plain(seed: Any) -> Any:
    return seed if seed is None or isinstance(seed, (int, str, float, bytes)) else int(seed)


def _context() -> Any:
    return importlib.import_module("tensorflow.python.eager.context").context()


def _global_generator() -> Any:
    """TensorFlow's global generator if the script has made it; asking for it would make it."""
    module = sys.modules.get("tensorflow.python.ops.stateful_random_ops")
    return getattr(module, "global_generator", None)


def _keras_seeds(*, make: bool = False) -> Any:
    """Keras' global seed generator if there is one, where TensorFlow keeps it."""
    keras = keras_module()
    if keras is None or keras.backend.backend() != "tensorflow":
        return None
    state = sys.modules.get("keras.src.backend.common.global_state")
    module = sys.modules.get("keras.src.random.seed_generator")
    if state is None or module is None:
        return None
    if make:
        return module.global_seed_generator()
    return state.get_global_attribute(module.GLOBAL_SEED_GENERATOR)
