"""One standby process below a guard of its own: started with the job's command line, warmed, called, or ended.

What goes on inside it is training/standby.py; the two talk through a pair of named pipes, in lines.
"""

from __future__ import annotations

import ast
import contextlib
import marshal
import os
import select
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orch_workers.process import priority
from orch_workers.process.guarded import Event, Gone, GuardedProcess
from orch_workers.standby.command import hooked

if TYPE_CHECKING:
    from collections.abc import Callable

    from orch_workers.standby.record import Step

FOLDER = "standby-talk"
POLL_S = 5.0
"""Between two looks at its memory."""
TAKE_OVER_LIMIT_S = 10.0
"""Longest wait for a process that is called. One that is still warming finishes the import that is under way."""
KILL_LIMIT_S = 30.0
BUSY_SHARE, SLICE_S = 0.2, 0.05
"""Where priorities cannot be restored, it runs for this part of the time while it is warmed, in such slices."""
LINE_BYTES_MAX = 1 << 16


class StandbyProcess:
    """Thread-safe. Phases: ``warming``, ``ready``, ``taken``, ``spoiled``, ``gone``."""

    def __init__(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: Path,
        hook: Path,
        place: Path,
        plan: Sequence[Step],
        on_event: Callable[[Event], None],
    ) -> None:
        """Starts it. `place` is its guard's; `on_event` is told what its guard tells once it has taken over.

        Raises GuardError or OSError when it cannot be started; then nothing of it is left.
        """
        self.place, self.env = place, dict(env)
        self.phase = "warming"
        self.modules, self.stopped_at = 0, ""
        self.spoiler: tuple[str, str] | None = None
        self.warmed_s: float | None = None
        self._folder = place / FOLDER
        self._on_event = on_event
        self._changed = threading.Condition()
        self._buffer = b""
        self._idle = priority.can_be_restored()
        self._started_s = time.monotonic()
        self._make_folder(plan)
        self._pidfd: int | None = None
        self._to = os.open(self._folder / "to", os.O_RDWR | os.O_CLOEXEC)
        self._from = os.open(self._folder / "from", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            self.process = GuardedProcess.start(
                argv,
                env=hooked(env, hook, f"wait:{self._folder}"),
                cwd=cwd,
                log_path=self._folder / "said",
                state_dir=place,
                on_event=self._on_process,
                idle=self._idle,
            )
        except BaseException:
            self._close()
            raise
        with contextlib.suppress(OSError):  # it has ended already: its guard tells
            self._pidfd = os.pidfd_open(self.process.pid)

    def _make_folder(self, plan: Sequence[Step]) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in ("to", "from", "said", "plan"):
            (self._folder / name).unlink(missing_ok=True)
        for name in ("to", "from"):
            os.mkfifo(self._folder / name, 0o600)
        # Version 2: what every Python that can be met reads.
        steps = [[step.name, step.origin, step.state] for step in plan]
        (self._folder / "plan").write_bytes(marshal.dumps(steps, 2))

    def _close(self) -> None:
        for descriptor in (self._to, self._from, self._pidfd):
            if descriptor is not None:
                os.close(descriptor)
        for name in ("to", "from", "said", "plan"):
            (self._folder / name).unlink(missing_ok=True)

    @property
    def waits(self) -> bool:
        """Whether it is there and has not been called."""
        return self.phase in {"warming", "ready"}

    def follow(self, look: Callable[[], None]) -> str:
        """Listens to it until it is taken or gone, and returns the phase it ended in. `look` is called now and then."""
        poller = select.poll()
        poller.register(self._from, select.POLLIN)
        try:
            while self.phase not in {"taken", "gone"}:
                if self.phase == "warming" and not self._idle:
                    self._throttle()
                elif not poller.poll(POLL_S * 1000):
                    look()
                with self._changed:
                    self._pump()
            return self.phase if self.spoiler is None else "spoiled"
        finally:
            self._close()

    def _throttle(self) -> None:
        # Under the lock: one that is being called is not stopped again.
        with self._changed:
            if self.phase == "warming":
                self._signal(signal.SIGSTOP)
        time.sleep(SLICE_S * (1 - BUSY_SHARE))
        self._signal(signal.SIGCONT)
        time.sleep(SLICE_S * BUSY_SHARE)

    def _signal(self, number: int) -> None:
        if self._pidfd is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    def _pump(self) -> None:
        """Takes in what it has said. Under the lock."""
        with contextlib.suppress(BlockingIOError):
            while piece := os.read(self._from, LINE_BYTES_MAX):
                self._buffer += piece
        while b"\n" in self._buffer:
            line, _, self._buffer = self._buffer.partition(b"\n")
            # What the user's interpreter says is read as plain values, never as code.
            self._heard(ast.literal_eval(line.decode()))

    def _heard(self, words: list[Any]) -> None:
        match words:
            case ["ready", int(modules), str(why)] if self.phase == "warming":
                self.modules, self.stopped_at = modules, why
                self.warmed_s = time.monotonic() - self._started_s
                self.phase = "ready"
            case ["spoiled", str(name), str(why)]:
                self.spoiler = (name, why)
            case ["taken"]:
                self.phase = "taken"
        self._changed.notify_all()

    def _on_process(self, event: Event) -> None:
        with self._changed:
            if self.phase not in {"taken", "gone"}:
                self._pump()  # what it said last may lie there still
            taken = self.phase == "taken"
            if not taken and isinstance(event, Gone):
                self.phase = "gone"
                self._changed.notify_all()
        if taken:
            self._on_event(event)

    def take_over(self, env: Mapping[str, str], log_path: Path) -> bool:
        """Makes it the job's process, with `env`; False when it is not, and then nothing of it is left."""
        word = {
            "env": {name: value for name, value in env.items() if self.env.get(name) != value},
            "unset": sorted(set(self.env) - set(env)),
            "log": str(log_path),
        }
        line = marshal.dumps(word, 2).hex().encode() + b"\n"
        deadline = time.monotonic() + TAKE_OVER_LIMIT_S
        with self._changed:
            if self.waits:
                priority.restore(self.process.pid)
                if not self._idle:
                    self._signal(signal.SIGCONT)
                os.write(self._to, line)
            self._changed.wait_for(lambda: not self.waits, timeout=max(0.0, deadline - time.monotonic()))
            self._pump_if_open()
            if self.phase == "taken":
                return True
        self.end()
        return False

    def _pump_if_open(self) -> None:
        if self.waits:
            self._pump()

    def end(self) -> None:
        """Kills it; returns when nothing of it is left."""
        self.process.kill()
        self.process.wait_gone(KILL_LIMIT_S)

    def memory(self) -> dict[str, int]:
        """`{"pss_bytes", "rss_bytes"}`: its share of what it uses, and all of it. Empty when it is gone."""
        found = {}
        with contextlib.suppress(OSError, ValueError):
            for line in Path(f"/proc/{self.process.pid}/smaps_rollup").read_text().splitlines():
                name, _, value = line.partition(":")
                if name in {"Pss", "Rss"}:
                    found[f"{name.lower()}_bytes"] = int(value.split()[0]) * 1024
        return found
