"""Keras' model.fit under orch: `orch.keras.Checkpoint()`, on any backend of Keras 3.

The loop is Keras' own. What a resume needs from inside it (the data's iterator, the list of callbacks) is found in
fit's frame, when the training begins. A step is complete when Keras asks for the next batch: by then every callback
has seen the last one. An epoch is over when the next one begins, for the same reason.
"""

# ruff: noqa: SLF001 - the loop's own members are what has to be resumed

from __future__ import annotations

import sys
from typing import Any, Iterator

from . import rng
from .arrays import numpy_module
from .errors import TrainingError
from .keras_callbacks import equal, put_state, state_of
from .objects import StateHandler
from .session import Options, open_run, say
from .snapshot import Adapters
from .tf_data import DatasetLoader, is_dataset
from .tf_graph import tensorflow_module

ARGUMENT = "model"
LOCAL_EVERY_S = 600.0
"""How often a checkpoint is made by hand, without orch."""


def fit_frame(model: Any) -> dict[str, Any]:
    """The local variables of the model.fit that is under way. Raises TrainingError when there is none."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        found: dict[str, Any] = frame.f_locals
        if "epoch_iterator" in found and found.get("self") is model and "callbacks" in found:
            return found
        frame = frame.f_back
    raise TrainingError(
        "orch.keras.Checkpoint() works inside model.fit(callbacks=[…]); in a loop of your own use "
        "orch.training(model=model, optimizer=optimizer)"
    )


class FitData:
    """The batches of a fit. Stands in for what Keras iterates, so that each opening is known and can be repeated."""

    def __init__(self, epoch_iterator: Any) -> None:
        self._adapters = Adapters()
        self._again = epoch_iterator._get_iterator
        dataset = self._again() if hasattr(epoch_iterator, "_distributed_dataset") else None
        tensorflow = tensorflow_module()
        self.dataset = DatasetLoader(tensorflow, dataset) if is_dataset(tensorflow, dataset) else None
        self._ready: Any = None
        self.taken = 0
        """Batches that the newest opening has given."""
        self._random: Any = None
        self._start: dict[str, Any] = {}
        self.is_open = False
        epoch_iterator._get_iterator = lambda: self

    def __iter__(self) -> Any:
        if self._ready is not None:
            ready, self._ready = self._ready, None
            return ready
        self.taken, self.is_open = 0, True
        self._random = rng.capture(self._adapters.active())
        if self.dataset is None:
            return iter(self._again())
        opened = self.dataset.open()
        self._start = self.dataset.start_state()
        return opened

    def capture(self) -> dict[str, Any] | None:
        if not self.is_open:
            return None
        now = self.dataset.state() if self.dataset is not None else {}
        return {"taken": self.taken, "random": self._random, "start": self._start, **now}

    def resume(self, stored: dict[str, Any], *, goes_on: bool) -> list[str]:
        """Opens the data as it was opened, and reads what had been taken. Not `goes_on`: that opening was over, and
        only the next ones have to come out as they would have. Returns what is not exact.
        """
        adapters = self._adapters.active()
        outside = rng.capture(adapters)
        problems = rng.restore(stored["random"], adapters)
        left = stored["taken"]
        if self.dataset is not None:
            self.dataset.set_start(stored["start"])
            if goes_on:
                left = self.dataset.resume(stored, left)
        if goes_on or self.dataset is not None:
            opened = iter(self)
            if goes_on:
                for _ in range(left):
                    next(opened)
                self.taken, self._random, self._ready = stored["taken"], stored["random"], opened
        return problems + rng.restore(outside, adapters)

    def why_inexact(self) -> list[str]:
        return [] if self.dataset is None else self.dataset.pipeline.why_inexact()


class FitHandler(StateHandler):
    """All of a fit as one argument: model, optimizer, metrics, the other callbacks, and where the data is."""

    kind = "keras.fit"
    order = 0

    def __init__(self, fit: Fit) -> None:
        super().__init__(ARGUMENT, fit)

    def capture(self) -> Any:
        return self.target.capture()

    def problems(self, stored: Any) -> list[str]:
        found: list[str] = []
        for part, live in self.target.variables().items():
            there = stored[part]["values"]
            here = _named(live)
            if len(there) != len(here):
                found.append(
                    f"the {part} have {len(there)} variables in the checkpoint, {len(here)} in this script"
                )
                continue
            for path, variable in zip(stored[part]["order"], live):
                if list(there[path].shape) != list(variable.shape):
                    shapes = (
                        f"{list(there[path].shape)} in the checkpoint, {list(variable.shape)} in this script"
                    )
                    found.append(f"{part}: {path} has shape {shapes}")
        return found

    def restore(self, stored: Any) -> None:
        self.target.restore(stored)

    def why_inexact(self) -> list[str]:
        found: list[str] = self.target.data.why_inexact()
        return found


class Fit:
    """One model.fit after another, of one model."""

    def __init__(self, callback: Any, backend: str) -> None:
        self._callback = callback
        self._backend = backend
        self.run: Any = None
        self.data: Any = None
        self.number = 0
        self._restored: dict[str, Any] | None = None
        self._random_now: Any = None
        self._adapters = Adapters()
        self._callbacks: Any = None
        self._before: dict[str, dict[str, Any]] = {}
        self._steps_done = 0
        """Batches of this epoch that are done."""
        self._due: dict[str, Any] | None = None
        """Metrics of a batch that is done and not counted yet."""
        self._epoch_ended: tuple[int, dict[str, Any]] | None = None
        self.stopped = False

    # what a checkpoint holds

    def variables(self) -> dict[str, list[Any]]:
        model = self._callback.model  # on JAX, this brings the model's variables up to date
        optimizer = getattr(model, "optimizer", None)
        return {
            "variables": list(model.variables),
            "metrics": list(model.metrics_variables),
            "optimizer": [] if optimizer is None else list(optimizer.variables),
        }

    def capture(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            part: {
                "order": list(_named(live)),
                "values": {key: self._held(v) for key, v in _named(live).items()},
            }
            for part, live in self.variables().items()
        }
        changed = {
            name: {
                key: value for key, value in state.items() if not equal(value, self._before[name].get(key))
            }
            for name, state in self._states().items()
            if name in self._before
        }
        return {
            **found,
            "callbacks": changed,
            "data": self.data.capture(),
            "fit": self.number,
            "batches": self._steps_done,
            "stopped": self.stopped,
        }

    def _held(self, variable: Any) -> Any:
        if self._backend == "tensorflow":
            return variable._value.value()
        if self._backend == "torch":
            return variable.value.detach()
        return numpy_module().asarray(variable.value)

    def restore(self, stored: dict[str, Any]) -> None:
        """The model and its optimizer now; metrics and callbacks when fit has reset them."""
        live = self.variables()
        for part in ("variables", "optimizer"):
            self._assign(live[part], stored[part])
        self._restored = stored

    def _assign(self, live: list[Any], stored: dict[str, Any]) -> None:
        numpy = numpy_module()
        for path, variable in zip(stored["order"], live):
            value = stored["values"][path]
            # A copy of its own: a backend may take over an array's memory, and two variables can have the same one.
            variable.assign(numpy.array(value) if type(value) is numpy.ndarray else value)

    # what Keras tells

    def train_begins(self, objects: dict[str, Any]) -> None:
        """Restores if there is something to restore, and sets the epoch at which fit begins."""
        self.number += 1
        model = self._callback.model
        found = fit_frame(model)
        self._callbacks = found["callbacks"]
        # First of all: what the others do at the end of an epoch or of the training shall meet what was restored.
        others = [other for other in self._callbacks.callbacks if other is not self._callback]
        self._callbacks.callbacks = [self._callback, *others]
        self._before, self._epoch_ended, self.stopped = {}, None, False
        if self._backend == "tensorflow":
            # The other backends have done so by now: what is restored must exist.
            model._symbolic_build(iterator=found["epoch_iterator"])
            found["epoch_iterator"].reset()
        self.data = FitData(found["epoch_iterator"])
        self._steps_done = 0
        epochs, first = found["epochs"], found["initial_epoch"]
        if self.run is None:
            options = Options(
                skip="replay", restore=True, seed=None, local_folder=None, local_every_s=LOCAL_EVERY_S
            )
            self.run = open_run({**objects, ARGUMENT: FitHandler(self)}, options)
            self._random_now = rng.capture(self._adapters.active())
        stored = self._restored
        if stored is None:
            self.run.set_epoch(first)
        elif stored["fit"] > self.number or (stored["fit"] == self.number and stored["stopped"]):
            model._initial_epoch = epochs  # this fit was over
        elif stored["fit"] == self.number:
            model._initial_epoch = self.run.epoch
        iterator = found["epoch_iterator"]
        usual = iterator._enumerate_iterator
        iterator._enumerate_iterator = lambda: self._steps(usual(), iterator)

    def epoch_begins(self, epoch: int) -> None:
        self._close_epoch()
        self._take_up()
        self._steps_done = self._to_skip
        self.run.set_epoch(epoch)

    def batch_ended(self, metrics: dict[str, Any]) -> None:
        self._due = metrics

    def epoch_ended(self, epoch: int, metrics: dict[str, Any]) -> None:
        self._due = None  # a loop that was left: its last batch belongs to the epoch that is over
        self._epoch_ended = (epoch + 1, metrics)

    def train_ends(self) -> None:
        self._take_up()
        self.stopped = bool(self._callback.model.stop_training)
        self._close_epoch()
        self.run.training_is_over()
        self._callback.model._initial_epoch = None

    def _close_epoch(self) -> None:
        if self._epoch_ended is not None:
            (epoch, metrics), self._epoch_ended = self._epoch_ended, None
            self._steps_done = 0
            self.run.epoch_is_over(epoch, metrics)

    _to_skip = 0

    def _take_up(self) -> None:
        """Once, when fit has reset the metrics and every callback has begun: what they were."""
        if not self._before:
            self._before = self._states()
        stored = self._restored
        if stored is None or stored["fit"] > self.number:
            return
        self._restored = None
        if stored["fit"] < self.number:
            return
        self._assign(self.variables()["metrics"], stored["metrics"])
        for name, callback in self._others():
            put_state(callback, stored["callbacks"].get(name, {}))
        self._to_skip = stored["batches"]
        if stored["data"] is not None and not stored["stopped"]:
            goes_on = bool(stored["batches"]) or self._spans_epochs
            problems = self.data.resume(stored["data"], goes_on=goes_on)
            rng.restore(self._random_now, self._adapters.active())
            for problem in problems:
                say(problem)

    @property
    def _spans_epochs(self) -> bool:
        """With steps_per_epoch one opening of the data goes on over the epochs."""
        return fit_frame(self._callback.model)["epoch_iterator"].steps_per_epoch is not None

    def _steps(self, usual: Iterator[Any], iterator: Any) -> Iterator[Any]:
        """Keras' own numbering, from the batch that comes next; a step is counted when its successor is asked for."""
        skip, self._to_skip = self._to_skip, 0
        for begin, end, batches in usual:
            if end < skip:
                continue
            yield begin, end, batches
            if self._due is not None:
                self.data.taken += end + 1 - begin
                self._steps_done = end + 1
                metrics, self._due = self._due, None
                self.run.step(**metrics)

    # the other callbacks

    def _others(self) -> Iterator[tuple[str, Any]]:
        seen: dict[str, int] = {}
        for callback in self._callbacks.callbacks:
            name = type(callback).__name__
            if callback is self._callback or name == "ProgbarLogger":
                continue
            seen[name] = seen.get(name, 0) + 1
            yield (name if seen[name] == 1 else f"{name}~{seen[name]}"), callback

    def _states(self) -> dict[str, dict[str, Any]]:
        return {name: state_of(callback) for name, callback in self._others()}


def _named(variables: list[Any]) -> dict[str, Any]:
    """By their paths, told apart where two are alike."""
    found: dict[str, Any] = {}
    for variable in variables:
        path, number = variable.path, 1
        while path in found:
            number += 1
            path = f"{variable.path}~{number}"
        found[path] = variable
    return found


def callback_class(keras: Any) -> Any:
    """`orch.keras.Checkpoint`, a callback of the user's own Keras."""

    class Checkpoint(keras.callbacks.Callback):  # type: ignore[misc]
        """Keeps a model.fit alive: `model.fit(…, callbacks=[orch.keras.Checkpoint()])`.

        Restores model, optimizer, metrics, the state of the other callbacks and the place in the data, in the middle
        of an epoch, too. objects: what else is part of the state, as for orch.training().
        """

        def __init__(self, **objects: Any) -> None:
            super().__init__()
            if ARGUMENT in objects:
                raise TypeError("orch.keras.Checkpoint() finds the model by itself: leave it out")
            self._objects = objects
            self._fit = Fit(self, keras.backend.backend())

        @property
        def run(self) -> Any:
            """The Run (`orch.training`); None before the first fit has begun."""
            return self._fit.run

        def on_train_begin(self, logs: Any = None) -> None:
            self._fit.train_begins(self._objects)

        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            self._fit.epoch_begins(epoch)

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            self._fit.batch_ended(dict(logs or {}))

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            self._fit.epoch_ended(epoch, dict(logs or {}))

        def on_train_end(self, logs: Any = None) -> None:
            self._fit.train_ends()

    return Checkpoint
