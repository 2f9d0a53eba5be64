"""How a run begins and ends: which sink, what is restored, and what the end of the script means."""

from __future__ import annotations

import atexit
import os
import random
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from .agent_sink import AgentSink
from .batches import MODES
from .collection import no_collection
from .errors import MismatchError, TrainingError, UnsupportedStateError
from .loader import is_torch_loader
from .objects import StateHandler, make_handler
from .protocol import ENV_SOCKET, EXIT_LEFT
from .run import Run
from .snapshot import Adapters, Stored, plan
from .tensors import torch_module
from .tf_data import is_dataset
from .tf_graph import TAKEN, tensorflow_module

if TYPE_CHECKING:
    from .sink import Sink, StartPoint

DATA_ARGUMENT = "data"
"""This argument, and any torch DataLoader, is where data comes from: no state of its own."""


SIGNALLED = 128
"""Exit status of a program that a signal ended, as shells count: this plus the signal's number."""


class Options:
    """Arguments of orch.training() that are not objects."""

    def __init__(
        self,
        *,
        skip: str,
        restore: bool,
        seed: int | None,
        local_folder: str | None,
        local_every_s: float,
        strict: bool = False,
    ) -> None:
        if skip not in MODES:
            raise ValueError(f"orch.training(skip={skip!r}): must be one of {', '.join(MODES)}")
        if not local_every_s > 0:
            raise ValueError(
                f"orch.training(local_every_s={local_every_s!r}): must be a positive number of seconds"
            )
        self.skip = skip
        self.restore = restore
        self.seed = seed
        self.local_folder = local_folder
        self.local_every_s = local_every_s
        self.strict = strict


_runs: list[Run] = []
"""At most one: the run of this process."""


def open_run(objects: dict[str, Any], options: Options) -> Run:
    """`begin`, and the run ends with the interpreter. Raises TrainingError and its kinds (errors.py), each
    with a sentence for the person who runs the script.
    """
    if _runs and _runs[-1].is_open_here:
        raise TrainingError("orch.training() was called twice in one process: give all objects to one call")
    run = begin(objects, options)
    _runs[:] = [run]
    _Ending(run)
    _listen_to_signals(run)
    return run


def begin(objects: dict[str, Any], options: Options) -> Run:
    """A run, restored; the interpreter's hooks and signals are left alone."""
    adapters = Adapters()
    values: dict[str, Any] = {}
    handlers = _handlers(objects, adapters, values)
    for handler in handlers:
        handler.strict = options.strict
    sink = _sink(options, adapters, handlers)
    run = Run(sink, handlers, values, adapters, skip=options.skip, seed=_seed(options), say=say)
    try:
        _restore(run, sink, adapters)
        for value in objects.values():
            if _is_data(value) and options.skip == "replay":
                run.check_loader(value)
        run.say_what_is_inexact()
    except BaseException:
        run.give_up()
        raise
    return run


def _is_data(value: Any) -> bool:
    return is_torch_loader(value) or is_dataset(tensorflow_module(), value)


def say(message: str) -> None:
    print(f"orch: {message}", file=sys.stderr, flush=True)


def _handlers(objects: dict[str, Any], adapters: Adapters, values: dict[str, Any]) -> list[StateHandler]:
    state = {name: value for name, value in objects.items() if name != DATA_ARGUMENT and not _is_data(value)}
    handlers = [make_handler(name, state, adapters.active(), values) for name in state]
    try:  # a plain value that cannot be kept is refused here, not at a save
        plan(dict(values), adapters.codecs(), {})
    except UnsupportedStateError as error:
        if tensorflow_module() is None:
            raise
        raise UnsupportedStateError(f"{error}; or {TAKEN}") from None
    return handlers


def _sink(options: Options, adapters: Adapters, handlers: list[StateHandler]) -> Sink:
    socket_path = os.environ.get(ENV_SOCKET)
    if socket_path:
        places = [place for handler in handlers for place in handler.places()]
        return AgentSink(socket_path, adapters.frameworks(), restore=options.restore, places=places)
    from .local import local_sink

    return local_sink(options.local_folder, options.local_every_s, restore=options.restore, say=say)


def _seed(options: Options) -> int:
    """For skip="index"; kept with the state, so what counts is the first start."""
    if options.seed is not None:
        return options.seed
    torch = torch_module()
    return int(torch.initial_seed()) if torch is not None else random.SystemRandom().getrandbits(63)


def _restore(run: Run, sink: Sink, adapters: Adapters) -> None:
    point = sink.restore
    if point is None:
        if sink.start is not None:
            _start_from(run, sink, sink.start, adapters)
            return
        if sink.passed_over is not None:
            run.note("warning", f"restore=False: starts from nothing, not from step {sink.passed_over.step}")
        sink.restored(0, "none", 0.0)
        return
    started = time.monotonic()
    stored = Stored(point.path, adapters.codecs())
    try:
        with no_collection():
            run.load(stored, f"of step {stored.step} (generation {point.generation})")
        run.leave_out(point.skip)
    except MismatchError as error:
        sink.mismatch(str(error))
        raise
    finally:
        stored.close()
    seconds_s = time.monotonic() - started
    sink.restored(stored.step, point.source, seconds_s)
    say(f"went on from step {stored.step} (epoch {run.epoch}), out of {point.source} in {seconds_s:.2f} s")


def _start_from(run: Run, sink: Sink, start: StartPoint, adapters: Adapters) -> None:
    """Begins with what fits of another job's state. That is no state of this job yet: nothing was restored."""
    started = time.monotonic()
    stored = Stored(start.path, adapters.codecs())
    try:
        with no_collection():
            report = run.start_from(stored, start.rules)
    except MismatchError as error:
        sink.mismatch(str(error))
        raise
    finally:
        stored.close()
    say(
        f"begins with {start.label}: {len(report.loaded)} tensors and arguments loaded, at step {run.step_count}"
    )
    kinds = (
        ("in the checkpoint, and not loaded", report.skipped),
        ("not in the checkpoint, as the script made it", report.missing),
        ("of another shape, as the script made it", report.reshaped),
    )
    for kind, names in kinds:
        for name in names:
            say(f"{kind}: {name}")
    sink.started(start.label, report)
    sink.restored(run.step_count, "start", time.monotonic() - started)


class _Ending:
    """Tells a clean end of the script from others, as far as an interpreter lets one.

    An uncaught exception comes by `sys.excepthook`. SystemExit does not, and atexit handlers are not told the
    status, so `sys.exit` is listened to: a script that says sys.exit(1) has not finished, and its state is
    not worth a checkpoint.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._exit_asked_at: int | None = None
        self._excepthook = sys.excepthook
        self._sys_exit = sys.exit
        sys.excepthook = self._failed
        sys.exit = self._exiting  # type: ignore[assignment]
        atexit.register(self._at_exit)

    def _failed(self, *error: Any) -> None:
        self._run.give_up()
        self._excepthook(*error)

    def _exiting(self, status: Any = None) -> None:
        self._exit_asked_at = None if status in (None, 0) else self._run.step_count
        self._sys_exit(status)

    def _at_exit(self) -> None:
        if self._exit_asked_at == self._run.step_count:
            self._run.give_up()
        else:
            self._run.finish()


def _listen_to_signals(run: Run) -> None:
    if threading.current_thread() is not threading.main_thread():
        return  # signal handlers can only be set by the main thread
    _stop_on(signal.SIGTERM, signal.SIG_DFL, run)
    if not os.environ.get(ENV_SOCKET):
        _stop_on(signal.SIGINT, signal.default_int_handler, run)


def _stop_on(number: signal.Signals, default: Any, run: Run) -> None:
    """The first such signal ends the run at its next step, saved; the second does what it always did. A
    script with a handler of its own keeps it.
    """
    if signal.getsignal(number) is not default:
        return

    def handle(received: int, _frame: Any) -> None:
        if run.was_asked_to_stop or not run.is_open_here:
            signal.signal(received, default)
            os.kill(os.getpid(), received)
            return
        run.ask_to_stop(EXIT_LEFT if os.environ.get(ENV_SOCKET) else SIGNALLED + received)
        say(f"{number.name}: leaving after the step that is under way; once more to leave at once")

    signal.signal(number, handle)
