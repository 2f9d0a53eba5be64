"""The Run: what `orch.training()` returns and a training loop talks to."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Callable, Iterator

from . import moved, rng
from .batches import Batches
from .devices import DeviceCopies, device_copies
from .errors import MismatchError, TrainingError
from .fitting import put_all, put_what_fits
from .forks import forget_in_children
from .loader import why_inexact
from .metrics import Metrics
from .planning import Planner
from .position import Position
from .protocol import EXIT_LEFT, IN_MEMORY
from .snapshot import write
from .stopping import EarlyStop
from .tf_graph import tensorflow_module

if TYPE_CHECKING:
    from .fitting import Report, StartRules
    from .objects import StateHandler
    from .page import Word
    from .sink import Sink
    from .snapshot import Adapters, Stored


class Run:
    """Not for several threads. Made by `orch.training()` alone.

    step_count: completed `step` calls, restored ones included. epoch: the epoch that is under way (or the
    next). restored_step: where this process went on from; None after a start from nothing. values: the plain
    values given to `orch.training()`; assign to them here, and what is here is saved.
    """

    def __init__(
        self,
        sink: Sink,
        handlers: list[StateHandler],
        values: dict[str, Any],
        adapters: Adapters,
        *,
        skip: str,
        seed: int,
        say: Callable[[str], None],
    ) -> None:
        self.step_count = 0
        self.restored_step: int | None = None
        self.values = values
        self.seed = seed
        self.inexact_reasons: list[str] = []
        self._sink = sink
        self._handlers = handlers
        self._adapters = adapters
        self._skip = skip
        self._say = say
        self._planner = Planner(handlers, adapters)
        self._devices: DeviceCopies | None = None
        self._metrics = Metrics()
        self._position = Position()
        self._batches = Batches(self._position, adapters, say, self._inexact, self._settle)
        self._batches.seed = seed
        self._saved_step: int | None = None
        self._handled_word = 0
        self._pending: str | None = None
        self._wanted = False
        self._leaving = self._held = False
        self._told_to_stop = False
        self._exit_left = EXIT_LEFT
        self._first_epoch = True
        self._stop = EarlyStop(sink.rules.stop, self.note)
        self._state = "open"
        forget_in_children(self)
        self.skipped_saves = 0

    # what the script uses

    @property
    def epoch(self) -> int:
        return self._position.epoch

    @property
    def batch(self) -> int:
        """The number, within its pass, of the batch that the innermost `batches` loop is at, from 0. Unlike
        `enumerate` it goes on counting where an interrupted pass was resumed.
        """
        return self._position.batch

    @property
    def exact(self) -> bool:
        """Whether a restart gives the very same run, as far as orch can see; the reasons are
        `inexact_reasons`.
        """
        return not self.inexact_reasons

    @property
    def should_stop(self) -> bool:
        """Whether the run was asked to stop; the next `step` saves and leaves."""
        return self._told_to_stop or self._sink.word().stop

    def epochs(self, count: int) -> Iterator[int]:
        """The epochs from the current one to `count` - 1. The run's last checkpoint is made when they are
        over.
        """
        self._check_open()
        if self.restored_step is not None and self._position.epoch >= count:
            self._say(f"nothing is left to do: all {count} epochs were over at step {self.restored_step}")
        while self._position.epoch < count and not self._stop.is_over:
            epoch = self._position.epoch
            self._enter_epoch()
            yield epoch
            self._position.end_epoch()
            self._after_epoch()
        if self._sink.rules.last:
            self._save("last", wait=True)

    def batches(self, loader: Any, skip: str | None = None) -> Iterator[Any]:
        """The batches of `loader`; in a resumed epoch from the one after the last that was consumed."""
        self._check_open()
        return self._batches.iterate(loader, self._skip if skip is None else skip)

    def step(self, **metrics: Any) -> None:
        """A step is complete: counts it, reports, saves when due, leaves (SystemExit 75) when told to.

        In a loop over `batches` the saving and the leaving happen when the loop's body is over, since a
        restart goes on with the next batch: what the body does after `step` is part of the checkpoint. Never
        waits for a GPU unless a checkpoint is due.
        """
        if self._state != "open":
            self._check_open()
        position = self._position
        if (
            self._stop.is_over and not position.in_epoch
        ):  # a loop of the script's own: nothing else can end it
            self.finish()
            raise SystemExit(0)
        count = self.step_count = self.step_count + 1
        self._metrics.put(count, position.epoch, metrics)
        if metrics and self._stop.look(count, metrics):
            self._wanted = True  # the best is kept, and so it must have been saved
        is_in_a_batch = position.count_step()
        word = self._sink.progress(count, position.epoch)
        due = self._due(word)
        if due is not None and (due != IN_MEMORY or self._pending is None):
            self._pending = due
        if count - 1 == self.restored_step:
            self._look_after_first_step()
        self._leaving = self._told_to_stop or (word.stop and count >= word.save_at)
        self._held = word.hold and count >= word.save_at
        report = self._metrics.due()
        if report is not None:
            self._sink.metrics(*report)
        if not is_in_a_batch:
            if position.in_epoch:
                self._warn_about_steps()
            self._settle()

    def save(self) -> None:
        """A checkpoint at the end of the loop body or epoch that is under way; at once in a loop of the
        script's own. One per step is kept, the first.
        """
        self._check_open()
        self._wanted = True
        if not self._position.in_epoch and not self._position.is_in_a_batch:
            self._settle()

    def finish(self) -> None:
        """The training is done: the last checkpoint is made and the run ends. Called by itself when the
        script ends without an error.
        """
        if self._state != "open":
            return
        if self._sink.rules.last or self._pending or self._wanted:
            self._save("last", wait=True)
        self._report_last()
        self._state = "finished"
        self._sink.finished(self.step_count, self._position.epoch)
        self._sink.close()

    def check_loader(self, loader: Any) -> None:
        """Says now, and not only when its first batch is read, what keeps `loader` from being resumed
        exactly.
        """
        for reason in why_inexact(self._batches.as_loader(loader)):
            self._inexact(reason)

    # for integrations whose loop is somebody else's (Keras' model.fit)

    def set_epoch(self, epoch: int) -> None:
        self._position.epoch = epoch

    def epoch_is_over(self, epoch: int, metrics: dict[str, Any]) -> None:
        """`epoch` of them are; saves where that is due."""
        self._position.epoch = epoch
        self._metrics.put(self.step_count, epoch, metrics)
        self._wanted = self._stop.look(self.step_count, metrics) or self._wanted
        self._after_epoch()

    def save_at(self, step: int) -> None:
        """The script counts by itself: this is its state after `step` steps."""
        self._check_open()
        self.step_count = step
        self._sink.progress(step, self._position.epoch)
        self._save("demand", wait=True)

    def training_is_over(self) -> None:
        if self._sink.rules.last:
            self._save("last", wait=True)

    def say_what_is_inexact(self) -> None:
        """Says what keeps the arguments from being restored exactly."""
        for handler in self._handlers:
            handler.tell_inexact = self._inexact
            for reason in handler.why_inexact():
                self._inexact(reason)

    # saving

    def _due(self, word: Word) -> str | None:
        rules, count = self._sink.rules, self.step_count
        if word.number != self._handled_word and word.save_at and count >= word.save_at:
            self._handled_word = word.number
            return "asked"
        if count == 1 and rules.first:
            return "first"
        if rules.steps and count % rules.steps == 0:
            return "steps"
        if rules.snapshots and count % rules.snapshots == 0:
            return IN_MEMORY
        return None

    def _settle(self) -> None:
        """Does what `step` and `save` found to be due. Called where a restart can go on exactly: at the end
        of a body with a step in it, at the end of an epoch, and right away in a loop of the script's own.
        """
        if self._wanted:
            self._pending = "demand"
        reason, self._pending = self._pending, None
        if reason is not None:
            self._save(reason, wait=reason in ("asked", "demand"))
        if self._held:
            self._held, self._leaving = False, self._leaving or self._sink.is_let_go_to_leave(self.step_count)
        if self._leaving:
            self._leave()

    def _save(self, reason: str, *, wait: bool) -> bool:
        """False when there was no free slot. At a step that is saved already there is nothing to do: the
        state may have changed since (a scheduler at the end of an epoch), and a restart from the former does
        that again.
        """
        if self.step_count in (0, self._saved_step):
            self._wanted = False
            return True
        started = time.monotonic()
        snapshot = self._planner.snapshot(self._own(), self._meta())
        grant = self._sink.grant(snapshot.size_bytes, self.step_count, reason, wait=wait)
        if grant is None:
            self.skipped_saves += 1
            return False
        try:
            self._devices = device_copies(self._devices, grant.slot, self._warn)
            write(snapshot, grant.slot, self._sink.generation, self.step_count, self._devices)
        except BaseException as error:
            self._sink.save_failed(grant, f"{type(error).__name__}: {error}")
            raise
        self._wanted = False
        if reason != IN_MEMORY:  # else what is due at this very step for storage is still to be saved
            self._saved_step = self.step_count
        self._sink.saved(
            grant,
            {
                "step": self.step_count,
                "epoch": self._position.epoch,
                "reason": reason,
                "blocked_s": time.monotonic() - started,
            },
        )
        return True

    def _own(self) -> dict[str, Any]:
        return {
            "~orch": {
                "kinds": {handler.name: handler.kind for handler in self._handlers},
                "random": rng.capture(self._adapters.active()),
                "position": self._position.to_tree(self._batches.state_of),
                "seed": self.seed,
                "inexact": self.inexact_reasons,
                "datasets": self._batches.datasets.to_tree(),
                "stop": self._stop.to_tree(),
            }
        }

    def _meta(self) -> dict[str, Any]:
        return {
            "step": self.step_count,
            "epoch": self._position.epoch,
            "metrics": self._metrics.read(),
            "kind": "state",
            "frameworks": self._adapters.frameworks(),
        }

    # restoring

    def load(self, stored: Stored, label: str) -> None:
        """Sets every object to what is stored. Raises MismatchError, before anything is changed, where it
        does not fit.
        """
        put_all(self._handlers, stored, label, note=self.note, mismatch=self._sink.mismatch)
        self._take_counters(stored)

    def start_from(self, stored: Stored, rules: StartRules) -> Report:
        """Begins with what fits of another job's state; the counters too, unless only some arguments are wanted."""
        report = put_what_fits(self._handlers, stored, rules)
        if not rules.only and stored.part("~orch", "position") is not None:  # an imported file has none
            self._take_counters(stored)
        return report

    def _take_counters(self, stored: Stored) -> None:
        self.seed = self._batches.seed = stored.part("~orch", "seed")
        for reason in stored.part("~orch", "inexact"):
            self._inexact(reason)
        random = stored.part("~orch", "random")
        for problem in rng.restore(random, self._adapters.active()):
            self._inexact(problem)
        self._batches.random_now = random
        self._batches.datasets.load(stored.part("~orch", "datasets"))
        self._position.load(stored.part("~orch", "position"))
        self._stop.load(stored.part("~orch", "stop"))
        self.step_count = self.restored_step = self._saved_step = stored.step
        if stored.meta.get("moved"):
            self._inexact(moved.settle(stored.meta["moved"], self._position, self._batches, self._adapters))

    def _look_after_first_step(self) -> None:
        """By now what a step needs exists: what was restored and has found no object is said."""
        try:
            for handler in self._handlers:
                for sentence in handler.look_after_first_step():
                    self.note("warning", sentence)
        except MismatchError as error:
            self._sink.mismatch(str(error))
            raise

    def leave_out(self, steps: int) -> None:
        """After a rollback: the data of the next `steps` steps is passed over."""
        if steps:
            self._batches.leave_out(steps)
            self._inexact(
                f"it was rolled back to step {self.step_count}, and the data of {steps} steps left out"
            )

    # epochs

    def _enter_epoch(self) -> None:
        position, adapters = self._position, self._adapters.active()
        first, self._first_epoch = self._first_epoch, False
        if first and position.random_at_epoch is not None and position.has_stored:
            # the script's own draws at the top of the epoch come out as they did
            for problem in rng.restore(position.random_at_epoch, adapters):
                self._inexact(problem)
        elif first and self._batches.random_now is not None:
            for problem in rng.restore(self._batches.random_now, adapters):
                self._inexact(problem)
            self._batches.random_now = None
        self._batches.datasets.epoch_begins(tensorflow_module())
        position.begin_epoch(rng.capture(adapters))

    def _after_epoch(self) -> None:
        every = self._sink.rules.epochs
        if every and self._position.epoch % every == 0:
            self._pending = "epochs" if self._pending in (None, IN_MEMORY) else self._pending
        self._leaving = self._leaving or self._told_to_stop or self._stop_is_due()
        self._settle()

    def _stop_is_due(self) -> bool:
        word = self._sink.word()
        return word.stop and self.step_count >= word.save_at

    # leaving

    @property
    def is_open_here(self) -> bool:
        return self._state == "open"

    @property
    def was_asked_to_stop(self) -> bool:
        return self._told_to_stop

    def ask_to_stop(self, status: int) -> None:
        """From a signal handler: the next `step` saves and leaves with this exit status."""
        self._told_to_stop = True
        self._exit_left = status

    def _leave(self) -> None:
        if not self._save("stop", wait=True):
            self.note("warning", f"no slot came free: left at step {self.step_count} without saving it")
        self._report_last()
        self._state = "left"
        self._sink.interrupted(self.step_count, self._saved_step or 0)
        self._sink.close()
        raise SystemExit(self._exit_left)

    def give_up(self) -> None:
        """The script ends with an error: nothing is saved, nothing is called finished."""
        if self._state == "open":
            self._state = "failed"
            self._sink.close()

    def _report_last(self) -> None:
        values = self._metrics.read()
        if values:
            self._sink.metrics(self.step_count, self._position.epoch, values)

    # words to people

    def _inexact(self, reason: str) -> None:
        if reason not in self.inexact_reasons:
            self.inexact_reasons.append(reason)
            self.note("warning", f"a restart of this run is not exact: {reason}")

    def _warn_about_steps(self) -> None:
        self._inexact(
            "run.step was called outside run.batches; a restart within an epoch repeats the epoch's data"
        )

    def _warn(self, message: str) -> None:
        self.note("warning", message)

    def note(self, level: str, message: str) -> None:
        self._say(message)
        self._sink.note(level, message)

    def _check_open(self) -> None:
        if self._state == "forked":
            raise TrainingError(
                "this process was forked from the one that trains: only that one may use the run"
            )
        if self._state != "open":
            raise TrainingError(f"this run has {self._state}: call orch.training() for a new one")

    def forked(self) -> None:
        """From here on this is the copy of a run that belongs to the parent process."""
        self._state = "forked"
