"""The agent's handle on its guarded training process. What a killed guard leaves behind: see leftovers.py."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shlex
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from orch_workers import guard
from orch_workers.process.leftovers import (
    MARK_ENV,
    PredecessorAliveError,
    SurvivorsError,
    forget_tree,
    mark_of,
    record_tree,
    survivors,
    sweep,
    wait_predecessor,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

__all__ = [
    "Event",
    "Exited",
    "Gone",
    "GuardError",
    "GuardedProcess",
    "PredecessorAliveError",
    "Stuck",
    "SurvivorsError",
    "split_command",
    "survivors",
    "sweep",
    "wait_predecessor",
]

GUARD_START_LIMIT_S = 30.0
RECORD_EVERY_S = 2.0
"""How often the tree is written down, if it changed."""
_EVENT_BYTES = 1 << 16
_SHELL_CHARACTERS = frozenset("|&;<>()$`\\*?[]{}~#!\n")
# Words that mean something to a shell only, or something else to it than the program of that name.
_SHELL_WORDS = frozenset(
    """
    . : alias bg break builtin case cd command continue declare eval exec exit export fg for function hash if
    jobs let local popd pushd read readonly return select set shift shopt source time times trap type typeset
    ulimit umask unalias unset until wait while
    """.split()  # noqa: SIM905, a list of words reads better than a column of strings
)


class GuardError(RuntimeError):
    """The guard could not be started, or refused."""


class GuardSilentError(GuardError):
    """No event came within the limit."""


@dataclass(frozen=True)
class Exited:
    """The command itself ended; others of its tree may still be there for up to `guard.REST_GRACE_S`."""

    code: int | None
    signal: int | None
    t_monotonic_ns: int
    message: str = ""
    """Why the command could not be started (exit code 126 or 127); it stands in the log too."""


@dataclass(frozen=True)
class Gone:
    """Nothing of the tree is left. `exited` is None when the guard was killed: nobody saw the status."""

    exited: Exited | None
    t_monotonic_ns: int
    swept: tuple[int, ...] = ()
    """With a killed guard: what had to be killed after it."""


@dataclass(frozen=True)
class Stuck:
    """The guard was killed, and these processes do not die (uninterruptible sleep, say). Sweeping goes on."""

    pids: tuple[int, ...]


Event = Exited | Gone | Stuck


def split_command(run: str) -> list[str]:
    """The words of `run`, or a shell around it where a shell is needed; a shell when in doubt.

    >>> split_command("python train.py --name 'a b'")
    ['python', 'train.py', '--name', 'a b']
    >>> split_command("cd src && python train.py")
    ['/bin/sh', '-c', 'cd src && python train.py']
    """
    shell = ["/bin/sh", "-c", run]
    if _SHELL_CHARACTERS.intersection(run):
        return shell
    try:
        words = shlex.split(run)
    except ValueError:  # an open quote: the shell's own message is the clearest
        return shell
    if not words or "=" in words[0] or words[0] in _SHELL_WORDS:
        return shell
    return words


class GuardedProcess:
    """One run of the command below one guard. Thread-safe.

    `on_event` is called from a thread of this object: `Exited` once (unless the guard is killed), `Gone` once
    and last, `wait_gone` returns after that.
    """

    def __init__(self, control: int, events: int, state_dir: Path, on_event: Callable[[Event], None]) -> None:
        self._control: int | None = control
        self._events = events
        self._state_dir = state_dir
        self._on_event = on_event
        self._lock = threading.Lock()
        self._gone = threading.Event()
        self._buffer = b""
        self._recorded: list[tuple[int, int]] = []
        self._guard: tuple[int, int] = (0, 0)
        self._exited: Exited | None = None
        self.pid = 0
        self.start_ticks = 0

    @classmethod
    def start(
        cls,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: Path,
        log_path: Path,
        state_dir: Path,
        on_event: Callable[[Event], None],
        idle: bool = False,
    ) -> GuardedProcess:
        """Starts a guard, and the command below it (`idle`: at the lowest priority); returns when the command has
        its pid.

        Standard output and error are appended to `log_path`. A command that cannot be started is an `Exited`
        with code 126 or 127, like a shell's. Raises GuardError when there is no guard; then nothing runs.
        """
        state_dir.mkdir(parents=True, exist_ok=True)
        control_read, control_write = os.pipe()
        events_read, events_write = os.pipe()
        self = cls(control_write, events_read, state_dir, on_event)
        try:
            _start_guard(control_read, events_write, state_dir)
        except BaseException:
            os.close(control_write)
            os.close(events_read)
            raise
        finally:
            os.close(control_read)
            os.close(events_write)
        self._begin(
            {
                "do": "start",
                "argv": list(argv),
                "env": {**env, MARK_ENV: mark_of(state_dir)},
                "cwd": str(cwd),
                "log_path": str(log_path),
                "idle": idle,
            }
        )
        threading.Thread(target=self._follow, name=f"guard of {self.pid}", daemon=True).start()
        return self

    def stop(self, grace_s: float) -> None:
        """TERM to the command (through shells, not its children); after `grace_s` KILL of the whole tree."""
        self._send({"do": "stop", "grace_s": grace_s})

    def kill(self) -> None:
        """SIGKILL of the whole tree, now."""
        self._send({"do": "kill"})

    def signal(self, number: int) -> None:
        """A signal to the command; where that is a shell, to what runs in it."""
        self._send({"do": "signal", "signal": int(number)})

    def wait_gone(self, limit_s: float) -> bool:
        """Waits until nothing of the tree is left; False when the limit came first."""
        return self._gone.wait(limit_s)

    def tree(self) -> list[int]:
        """The pids of the command's tree as they are now, the guard left out."""
        return [
            process.pid for process in guard.below(guard.all_processes(), self._guard[0]) if process.alive
        ]

    # starting

    def _begin(self, message: dict[str, Any]) -> None:
        try:
            self._send(message)
            ready = self._expect("ready")
            self._guard = (ready["pid"], ready["start_ticks"])
            started = self._expect("started")
            self.pid, self.start_ticks = started["pid"], started["start_ticks"]
            self._record()
        except BaseException:
            self._close()
            os.close(self._events)
            raise

    def _expect(self, name: str) -> dict[str, Any]:
        event = self._next_event(GUARD_START_LIMIT_S)
        if event is None:
            raise GuardError(f"the guard in {self._state_dir} ended at once: {_said(self._state_dir)}")
        if event["event"] != name:
            raise GuardError(f"the guard in {self._state_dir} did not start: {event.get('message', event)}")
        return event

    def _send(self, message: dict[str, Any]) -> None:
        data = memoryview(json.dumps(message).encode() + b"\n")
        with self._lock:
            if self._control is None:
                return  # it is gone already
            with contextlib.suppress(BrokenPipeError):  # the guard is dead: `_follow` sees it too, and sweeps
                while data:
                    data = data[os.write(self._control, data) :]

    def _close(self) -> None:
        with self._lock:
            if self._control is not None:
                os.close(self._control)
                self._control = None

    # following

    def _next_event(self, limit_s: float) -> dict[str, Any] | None:
        """The next event; None at the end of the pipe. Raises GuardSilentError at the limit."""
        poller = select.poll()
        poller.register(self._events, select.POLLIN)
        deadline = time.monotonic() + limit_s
        while b"\n" not in self._buffer:
            left_s = deadline - time.monotonic()
            if not poller.poll(max(0.0, left_s) * 1000):
                raise GuardSilentError(f"no word from the guard in {self._state_dir} within {limit_s} s")
            piece = os.read(self._events, _EVENT_BYTES)
            if not piece:
                return None
            self._buffer += piece
        line, _, self._buffer = self._buffer.partition(b"\n")
        event: dict[str, Any] = json.loads(line)
        return event

    def _follow(self) -> None:
        exited: Exited | None = None
        while True:
            try:
                event = self._next_event(RECORD_EVERY_S)
            except GuardSilentError:
                self._record()
                continue
            if event is None:
                gone = self._sweep_after_guard(exited)
                break
            if event["event"] == "exited":
                exited = Exited(event["code"], event["signal"], event["t_monotonic_ns"], event["message"])
                self._on_event(exited)
            elif event["event"] == "gone":
                gone = Gone(exited, event["t_monotonic_ns"])
                with contextlib.suppress(OSError):
                    forget_tree(self._state_dir)
                break
        self._close()
        os.close(self._events)
        try:
            self._on_event(gone)
        finally:
            self._gone.set()

    def _sweep_after_guard(self, exited: Exited | None) -> Gone:
        # No limit on the rounds: nothing may start in this place while something is left; each round is told.
        while True:
            try:
                swept = sweep(self._state_dir)
                return Gone(exited, time.monotonic_ns(), tuple(swept))
            except SurvivorsError as error:
                self._on_event(Stuck(error.pids))

    def _record(self) -> None:
        tree = guard.below(guard.all_processes(), self._guard[0])
        found = [(process.pid, process.start_ticks) for process in tree]
        if found == self._recorded:
            return
        # A full disk: it is tried again, and the marks in the environment remain.
        with contextlib.suppress(OSError):
            record_tree(self._state_dir, [self._guard, *found])
            self._recorded = found


def _start_guard(control: int, events: int, state_dir: Path) -> None:
    """Returns once the guard has cut itself loose from us. Raises GuardError."""
    command = [sys.executable, "-I", "-S", "-X", "utf8", guard.__file__]
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    with (state_dir / "guard.err").open("wb") as errors:
        first = subprocess.Popen(
            [*command, str(control), str(events), str(state_dir), str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            pass_fds=(control, events),
            env=kept,
        )
        try:
            code = first.wait(GUARD_START_LIMIT_S)
        except subprocess.TimeoutExpired:
            first.kill()
            first.wait()
            code = None
    if code != 0:
        raise GuardError(f"the guard could not be started (exit code {code}): {_said(state_dir)}")


def _said(state_dir: Path) -> str:
    return (state_dir / "guard.err").read_text(errors="replace")[-2000:] or "it said nothing"
