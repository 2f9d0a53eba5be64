"""The standby: while the training process works, a second interpreter is warmed and waits to take its place.

It is started with the job's own command line, held before the script by training/standby.py, warmed with what the
script imported last time, and becomes the training process when that one ends. Where anything is in doubt there is
none, and the next start is a fresh one. docs/standby.md is the page for users.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from orch_workers.process.guarded import Event, GuardedProcess, GuardError
from orch_workers.shipping.bundle import HOOK_FOLDER
from orch_workers.standby.command import (
    PythonCommand,
    UnsupportedError,
    hooked,
    probe,
    python_command,
    surely_reads_it,
)
from orch_workers.standby.process import StandbyProcess
from orch_workers.standby.record import read_record
from orch_workers.training.protocol import ENV_GENERATION, ENV_SOCKET

GOING_POLL_S = 0.1
GOING_UNKNOWN_S = 5.0
"""A process whose steps nobody knows is taken to have its imports behind it after so long."""
LOST_MAX = 5
"""So many standbys of one worker may die unasked; after that no more are made."""
SPOILED_MAX = 20
"""So many modules are found out, one after the other, that cannot be warmed."""
PAUSE_S = 1.0
"""Before another one is made in place of one that died."""
START_BYTES = 32 << 20
"""What an interpreter needs, as long as no standby of this job has been measured."""
PER_START = frozenset({ENV_GENERATION, ENV_SOCKET, "MASTER_PORT", "TF_CONFIG"})
"""What differs from one start to the next. A standby whose environment differs in more is not used."""
NO_SOCKET = "/nonexistent/orch-standby"
"""The agent's socket for a process that has not taken over: should it ever run the script, that ends at once."""

log = logging.getLogger(__name__)


class Standby:
    """At most one waiting process. `places` are two state folders of guards: one is the training process's.

    `start`, `began`, `take_over` are for the worker's thread; `end` and `status` for any. `memory_bytes` is the
    job's limit for one worker (None: none), `used` what its training process uses now.
    """

    def __init__(
        self,
        places: tuple[Path, Path],
        *,
        enabled: bool,
        on_event: Callable[[Event], None],
        memory_bytes: int | None = None,
        used: Callable[[], int] = lambda: 0,
    ) -> None:
        self._places, self._enabled, self._on_event = places, enabled, on_event
        self._memory_bytes, self._used = memory_bytes, used
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._at = 0  # the place of the training process
        self._launch: tuple[Sequence[str], dict[str, str], Path, Path] | None = None
        self._command: PythonCommand | None = None
        self._probed = False
        self._why = "" if enabled else "off: restart.standby is false"
        self._waiting: StandbyProcess | None = None
        self._turn = 0
        self._spoilers: dict[str, str] = {}
        self._lost = 0
        self._needs_bytes = START_BYTES
        self._memory: dict[str, int] = {}

    @property
    def record(self) -> Path:
        return self._places[0] / "imports"

    # starts

    def start(
        self, argv: Sequence[str], env: Mapping[str, str], cwd: Path, bundle: Path
    ) -> tuple[dict[str, str], Path]:
        """For a fresh start of the command: its environment, and the state folder for its guard.

        What the script imports is recorded where the interpreter is known to understand that.
        """
        hook = bundle / HOOK_FOLDER
        self._launch = (argv, dict(env), cwd, hook)
        waiting = self._waiting
        self._at = 1 - self._places.index(waiting.place) if waiting is not None else self._at
        place = self._places[self._at]
        if not self._enabled:
            return dict(env), place
        try:
            self._command = python_command(argv, env, cwd)
        except UnsupportedError as error:
            self._say_none(str(error))
            return dict(env), place
        if not (self._probed or surely_reads_it(self._command)):
            return dict(env), place
        self.record.unlink(missing_ok=True)
        return hooked(env, hook, f"record:{self.record}"), place

    def take_over(
        self, argv: Sequence[str], env: Mapping[str, str], cwd: Path, log_path: Path
    ) -> GuardedProcess | None:
        """The standby as the job's process, or None: then there is none any more, and a fresh start is due."""
        with self._lock:
            waiting = self._waiting
        if waiting is None or self._launch is None:
            return None
        if self._launch[0] != argv or self._launch[2] != cwd or self._differs(waiting, env):
            waiting.end()
            return None
        if not waiting.take_over(env, log_path):
            log.info("the standby did not take over; the command is started afresh")
            return None
        self._at = self._places.index(waiting.place)
        self._launch = (argv, dict(env), cwd, self._launch[3])
        with self._lock:
            self._waiting = None
        return waiting.process

    @staticmethod
    def _differs(waiting: StandbyProcess, env: Mapping[str, str]) -> bool:
        names = set(env) | set(waiting.env)
        return any(waiting.env.get(name) != env.get(name) for name in names - PER_START)

    # getting one ready

    def began(self, over: threading.Event, is_going: Callable[[], bool | None]) -> None:
        """A training process runs, until `over`. One is made ready once its imports are behind it: when `is_going`
        (None: nobody knows).
        """
        if not self._enabled or self._command is None or self._closed.is_set():
            return
        with self._lock:
            if self._waiting is not None:
                return  # its own thread looks after it
            self._turn += 1  # an earlier thread that was about to make one leaves it to the new one
            turn = self._turn
        threading.Thread(
            target=self._keep_one, args=(turn, over, is_going), name="standby", daemon=True
        ).start()

    def _keep_one(self, turn: int, over: threading.Event, is_going: Callable[[], bool | None]) -> None:
        try:
            if self._wait_going(over, is_going):
                self._probe()
                while self._make_one(turn):
                    self._closed.wait(PAUSE_S)
        except UnsupportedError as error:
            self._say_none(str(error))
        except Exception:
            # Without a standby a restart takes longer; that is all.
            log.exception("no standby can be kept")
            self._say_none("it could not be kept; the agent's log says why")
            self._end_waiting()

    def _wait_going(self, over: threading.Event, is_going: Callable[[], bool | None]) -> bool:
        since_s = time.monotonic()
        while not over.wait(GOING_POLL_S) and not self._closed.is_set():
            going = is_going()
            if going or (going is None and time.monotonic() - since_s >= GOING_UNKNOWN_S):
                return True
        return False

    def _probe(self) -> None:
        if self._probed:
            return
        assert self._command is not None
        assert self._launch is not None
        _, env, cwd, hook = self._launch
        probe(self._command, env, cwd, hook, self._places[0] / "interpreter")
        self._probed = True

    def _make_one(self, turn: int) -> bool:
        """Makes one and follows it to its end; True when another one is wanted."""
        if not self._has_room(self._needs_bytes):
            return False
        assert self._launch is not None
        argv, env, cwd, hook = self._launch
        with self._lock:
            if self._closed.is_set() or turn != self._turn:
                return False
            try:
                one = StandbyProcess(
                    argv,
                    env={**env, ENV_SOCKET: NO_SOCKET},
                    cwd=cwd,
                    hook=hook,
                    place=self._places[1 - self._at],
                    plan=read_record(self.record).plan(self._spoilers),
                    on_event=self._on_event,
                )
            except (GuardError, OSError) as error:
                self._say_none(f"it could not be started: {error}")
                return False
            self._waiting, self._why = one, ""
        try:
            phase = one.follow(lambda: self._look(one))
        finally:
            with self._lock:
                self._memory = {}
                if self._waiting is one:
                    self._waiting = None
        return self._again(one, phase)

    def _again(self, one: StandbyProcess, phase: str) -> bool:
        if phase == "taken" or self._why:
            return False
        if phase == "spoiled" and one.spoiler is not None:
            name, why = one.spoiler
            log.info("%s is not warmed: %s", name, why)
            self._spoilers[name] = why
            return len(self._spoilers) <= SPOILED_MAX
        self._lost += 1
        if self._lost > LOST_MAX:
            self._say_none(f"{LOST_MAX + 1} of them died unasked")
        return self._lost <= LOST_MAX

    def _look(self, one: StandbyProcess) -> None:
        self._memory = one.memory()
        self._needs_bytes = max(self._needs_bytes, self._memory.get("pss_bytes", 0))
        if not self._has_room(self._memory.get("pss_bytes", 0)):
            one.end()

    def _has_room(self, needs_bytes: int) -> bool:
        limit_bytes, used_bytes = self._memory_bytes, self._used()
        if limit_bytes is None or used_bytes + needs_bytes <= limit_bytes:
            return True
        self._say_none(
            f"the job's memory would not hold it: {used_bytes >> 20} MiB are used, it needs {needs_bytes >> 20} MiB, "
            f"and the limit is {limit_bytes >> 20} MiB"
        )
        return False

    def _say_none(self, why: str) -> None:
        self._why = why
        log.debug("no standby: %s", why)

    # the end

    def end(self) -> None:
        """Ends it for good; returns when nothing of it is left."""
        self._closed.set()
        self._end_waiting()

    def _end_waiting(self) -> None:
        with self._lock:
            waiting = self._waiting
        if waiting is not None:
            waiting.end()

    def status(self) -> dict[str, Any]:
        """What status shows: ``state`` (none, warming, ready), why there is none, pid, modules, memory."""
        waiting = self._waiting
        if waiting is None:
            return {"state": "none", "why": self._why}
        return {
            "state": waiting.phase,
            "pid": waiting.process.pid,
            "modules": waiting.modules,
            "warmed_up_to": waiting.stopped_at or None,
            "not_warmed": dict(self._spoilers),
            **self._memory,
        }
