"""`run.batches`: iterates a loader, and in a resumed epoch goes to the batch after the last one that was
consumed.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Callable, Iterator, Sequence

from . import rng
from .dividing import Division
from .errors import TrainingError
from .indexed import indexed_batches
from .loader import (
    generator_states,
    keeps_own_state,
    open_iterator,
    set_generator_states,
    why_inexact,
)
from .position import Position, Stream
from .tf_data import DatasetLoader, Datasets, is_dataset
from .tf_graph import tensorflow_module

if TYPE_CHECKING:
    from .snapshot import Adapters

MODES = ("replay", "index")
PROGRESS_EVERY_S = 5.0


class Batches:
    """Opens the streams of a run."""

    def __init__(
        self,
        position: Position,
        adapters: Adapters,
        say: Callable[[str], None],
        inexact: Callable[[str], None],
        settle: Callable[[], None],
    ) -> None:
        self.seed = 0
        self.random_now: dict[str, Any] | None = None
        """The random states of the checkpoint, until the first stream that was open in it has been resumed.
        """
        self.moved = False
        """Other ranks have saved what is gone on with."""
        self._position = position
        self._adapters = adapters
        self._say = say
        self._inexact = inexact
        self._settle = settle
        self.datasets = Datasets()
        self._iterators_seen: list[Any] = []
        self._steps_out = self._batches_out = 0
        self._loader_out: Any = None

    def iterate(self, loader: Any, mode: str) -> Iterator[Any]:
        if mode not in MODES:
            raise ValueError(f"skip={mode!r}: must be one of {', '.join(MODES)}")
        loader = self.as_loader(loader)
        stored = self._position.next_stored()
        adapters = self._adapters.active()
        if stored is not None and stored["done"] and stored["steps"]:
            # Its steps are part of the restored state: nothing of it is left to do.
            over = Stream(loader, stored["mode"], None, stored["generators"])
            over.batches, over.steps = stored["batches"], stored["steps"]
            self._position.begin(over)
            self._position.end(over)
            return
        self._check(loader, mode)
        if self._position.repeats_loops:
            self._inexact(
                "run.batches was called for several passes without run.epochs; a restart repeats what is "
                "between them, so loop over run.epochs(count)"
            )
        outside = self._outside(stored, adapters)
        stream, iterator = self._begin(loader, mode, stored, adapters)
        if stored is not None and not stored["done"]:
            self._problems(rng.restore(outside, adapters))
            if stored["generators_now"] and mode == "replay" and not isinstance(loader, DatasetLoader):
                self._problems(set_generator_states(loader, stored["generators_now"], adapters))
        try:
            for batch in iterator:
                stream.batches += 1
                stream.steps_of_batch = 0
                if self._is_left_out(stream):
                    continue
                yield batch
                if stream.steps_of_batch and self._position.is_outermost(stream):
                    self._settle()
        finally:
            self._position.end(stream)
            if stream.division is not None:
                stream.division.end()

    def as_loader(self, loader: Any) -> Any:
        """What stands in for `loader`: a tf.data.Dataset is read through an object that can tell where it is."""
        tensorflow = tensorflow_module()
        return self.datasets.loader(tensorflow, loader) if is_dataset(tensorflow, loader) else loader

    def leave_out(self, steps: int) -> None:
        """Passes over the data of so many steps, in the first loader that is iterated and in no other (an evaluation's
        say). As many batches a step as there were before.
        """
        self._steps_out, self._batches_out, self._loader_out = steps, 0, None

    def _is_left_out(self, stream: Stream) -> bool:
        if self._steps_out:
            done = stream.batches - 1
            self._batches_out = (
                -(-self._steps_out * done // stream.steps) if stream.steps else self._steps_out
            )
            self._steps_out, self._loader_out = 0, stream.loader
        if not self._batches_out or stream.loader is not self._loader_out:
            return False
        self._batches_out -= 1
        return True

    def state_of(self, stream: Stream) -> dict[str, Any]:
        """For Position.to_tree."""
        if isinstance(stream.loader, DatasetLoader):
            return {"generators_now": {}, "loader": stream.loader.state()}
        own = stream.loader.state_dict() if keeps_own_state(stream.loader) else None
        now = generator_states(stream.loader, self._adapters.active())
        return {"generators_now": now, "loader": own}

    def _outside(self, stored: dict[str, Any] | None, adapters: Sequence[Any]) -> dict[str, Any]:
        """The random states to go on with once a resumed stream is where it was."""
        if stored is None or stored["done"]:
            return {}
        if self.random_now is None:  # another stream went on first (zip of two), and may have drawn since
            return rng.capture(adapters)
        outside, self.random_now = self.random_now, None
        return outside

    def _begin(self, loader: Any, mode: str, stored: dict[str, Any] | None, adapters: Sequence[Any]) -> Any:
        if stored is not None:
            if stored["mode"] != mode:
                raise TrainingError(
                    f"the checkpoint was made with skip={stored['mode']!r}, this script says skip={mode!r}: "
                    "the batches would not be the same ones; go on with the former"
                )
            if stored["random"] is not None:
                self._problems(rng.restore(stored["random"], adapters))
            self._problems(set_generator_states(loader, stored["generators"], adapters))
        stream = Stream(loader, mode, rng.capture(adapters), generator_states(loader, adapters))
        consumed = 0 if stored is None or stored["done"] else stored["batches"]
        stream.division = self._division(loader, stored, consumed)
        done_before = consumed - (0 if stream.division is None else stream.division.batches)
        if mode == "index":
            iterator = indexed_batches(loader, self.seed, self._position.epoch, done_before)
        elif done_before and keeps_own_state(loader):
            loader.load_state_dict(stored["loader"] if stored else None)
            iterator = open_iterator(loader, adapters)
        elif done_before and isinstance(loader, DatasetLoader):
            left = loader.resume(stored["loader"] if stored else {}, done_before)
            iterator = open_iterator(loader, adapters)
            self._replay(iterator, left)
        else:
            iterator = open_iterator(loader, adapters)
            self._replay(iterator, done_before)
        self._position.begin(stream)
        if stored is not None and not stored["done"]:
            stream.batches, stream.steps = consumed, stored["steps"]
        return stream, iterator

    def _division(self, loader: Any, stored: dict[str, Any] | None, consumed: int) -> Division | None:
        known = None if stored is None or not consumed else stored.get("division")
        found = Division.of(loader, None if known is None else {**known, "consumed": consumed})
        if self.moved and consumed and (known is None or found is None):
            self._inexact(
                "this pass over the data began on another number of ranks, and no DistributedSampler of torch's "
                "divides it: samples may be seen twice or not at all"
            )
        if found is not None:
            found.begin()
        return found

    def _replay(self, iterator: Iterator[Any], count: int) -> None:
        started = said = time.monotonic()
        for number in range(count):
            try:
                next(iterator)
            except StopIteration:
                raise TrainingError(
                    f"the loader gives {number} batches, and the checkpoint was made after {count} of them: "
                    "the data is not what it was; bring it back, or start a new run"
                ) from None
            if time.monotonic() - said >= PROGRESS_EVERY_S:
                said = time.monotonic()
                self._say(f"replaying epoch {self._position.epoch}: {number + 1} of {count} batches")
        if count:
            took_s = time.monotonic() - started
            self._say(f"replayed {count} batches of epoch {self._position.epoch} in {took_s:.1f} s")

    def _check(self, loader: Any, mode: str) -> None:
        if mode == "index":
            return
        for reason in why_inexact(loader):
            self._inexact(reason)
        if hasattr(loader, "__next__"):
            if any(loader is seen for seen in self._iterators_seen):
                self._inexact(
                    "run.batches was given one iterator twice; a restart begins it anew, so give it the "
                    "loader and not iter(loader)"
                )
            else:
                self._iterators_seen.append(loader)

    def _problems(self, found: Sequence[str]) -> None:
        for problem in found:
            self._inexact(problem)
