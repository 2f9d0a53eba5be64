"""Where a run is: its epoch, and in it the loaders that were iterated, each with how far and from which
random states.

A checkpoint in the middle of an epoch keeps, beside the random states of its own moment, those of the start
of the epoch and of the start of each iteration. Resuming sets the epoch's first, so that what the script
draws at the top of its epoch (a permutation, say) comes out the same; then, at `run.batches`, the
iteration's, replays what was consumed; and last the checkpoint's own, with which training goes on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Callable

if TYPE_CHECKING:
    from .dividing import Division


class Stream:
    """One iteration over one loader. `done`: it ended, by itself or because the script left its loop."""

    def __init__(self, loader: Any, mode: str, random: Any, generators: dict[str, Any]) -> None:
        self.loader = loader
        self.mode = mode
        self.random_at_start = random
        self.generators_at_start = generators
        self.batches = 0
        self.steps = 0
        self.steps_of_batch = 0
        self.done = False
        self.division: Division | None = None
        """How its samples are divided over the ranks, where that is known."""


class Position:
    """`epoch` counts the epochs that are over; `streams` are those of the epoch that is under way, in the
    order in which they began. What began and ended inside the loop body of another (an evaluation every 100
    steps) is left out: it is over whenever that body is.
    """

    def __init__(self) -> None:
        self.epoch = 0
        self.in_epoch = False
        self.random_at_epoch: dict[str, Any] | None = None
        self.streams: list[Stream] = []
        self._stored: list[dict[str, Any]] = []
        self._opened = 0

    def load(self, stored: dict[str, Any]) -> None:
        self.epoch = stored["epoch"]
        self.random_at_epoch = stored["random"]
        self._stored = stored["streams"]

    def forget_random(self, random: dict[str, Any]) -> None:
        """What is stored is another rank's: this one goes on from `random` everywhere."""
        if self.random_at_epoch is not None:
            self.random_at_epoch = random
        self._stored = [{**stream, "random": stream["random"] and random} for stream in self._stored]

    def to_tree(self, state_of: Callable[[Stream], dict[str, Any]]) -> dict[str, Any]:
        """`state_of` adds what only the loader's own objects can tell about an open stream."""
        streams = [
            {
                "mode": stream.mode,
                "batches": stream.batches,
                "steps": stream.steps,
                "done": stream.done,
                "division": None if stream.division is None else stream.division.to_tree(),
                "random": None if stream.done and stream.steps else stream.random_at_start,
                "generators": {} if stream.done and stream.steps else stream.generators_at_start,
                **({} if stream.done else state_of(stream)),
            }
            for stream in self.streams
        ]
        return {
            "epoch": self.epoch,
            "in_epoch": self.in_epoch,
            "random": self.random_at_epoch,
            "streams": streams,
        }

    @property
    def has_stored(self) -> bool:
        return bool(self._stored)

    @property
    def repeats_loops(self) -> bool:
        """Loops with steps are over, and a restart would walk through them again, empty."""
        return not self.in_epoch and any(stream.done and stream.steps for stream in self.streams)

    @property
    def batch(self) -> int:
        return next((stream.batches - 1 for stream in reversed(self.streams) if not stream.done), -1)

    @property
    def is_in_a_batch(self) -> bool:
        return any(not stream.done for stream in self.streams)

    def begin_epoch(self, random: dict[str, Any]) -> None:
        self.in_epoch, self.random_at_epoch = True, random
        self.streams, self._opened = [], 0

    def end_epoch(self) -> None:
        self.epoch += 1
        self.in_epoch, self.random_at_epoch = False, None
        self.streams, self._stored, self._opened = [], [], 0

    def next_stored(self) -> dict[str, Any] | None:
        """What the checkpoint has on the stream that is about to begin; each is handed out once."""
        number, self._opened = self._opened, self._opened + 1
        return self._stored[number] if number < len(self._stored) else None

    def begin(self, stream: Stream) -> None:
        self.streams.append(stream)

    def end(self, stream: Stream) -> None:
        stream.done = True
        if stream not in self.streams:  # the script went on to the next epoch while holding on to it
            return
        place = self.streams.index(stream)
        if any(not other.done for other in self.streams[:place]):
            del self.streams[place]

    def count_step(self) -> bool:
        """Counts a step for every open stream; False when there is none."""
        found = False
        for stream in self.streams:
            if not stream.done:
                stream.steps += 1
                stream.steps_of_batch += 1
                found = True
        return found

    def is_outermost(self, stream: Stream) -> bool:
        """Of the open ones: the end of its loop's body is the end of all that is under way."""
        return next((other for other in self.streams if not other.done), None) is stream
