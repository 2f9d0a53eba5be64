"""For tests: has the controller killed (or frozen) at a named place, by itself, exactly there.

The file `test-kill-points` in orch's home names the places, one a line: `AgentUp:inside`, `StartAgents:after stop`.
The controller looks for the file when it starts and whenever it looks at its queue, never for an event; the first
line is taken out of the file before the signal is sent, so each strikes once. Without the file nothing happens.

Of an event: `before` its transaction, `inside` (everything is written, nothing committed), `after`. Of a command:
`before` it is carried out, `after` (its effect is there, the store does not know), `done` (the store knows).
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
from pathlib import Path

from orch.model.commands import COMMANDS
from orch.model.events import EVENTS

FILE_NAME = "test-kill-points"
STRUCK_NAME = "test-kill-points-struck"
"""What was armed and what struck: `armed|struck PLACE pid microseconds` a line."""
EVENT_MOMENTS = ("before", "inside", "after")
COMMAND_MOMENTS = ("before", "after", "done")
SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}

log = logging.getLogger("orch.killpoints")


def places() -> list[str]:
    """Every name that a line can begin with."""
    events = [f"{name}:{moment}" for name in EVENTS for moment in EVENT_MOMENTS]
    return events + [f"{name}:{moment}" for name in COMMANDS for moment in COMMAND_MOMENTS]


class KillPoints:
    def __init__(self, home: Path) -> None:
        self._path, self._struck = home / FILE_NAME, home / STRUCK_NAME
        self._armed: str | None = None

    def look(self) -> None:
        """Arms the file's first line; a file that is gone disarms."""
        armed: str | None = None
        with contextlib.suppress(OSError):
            armed = next(iter(self._path.read_text().splitlines()), None)
        if armed != self._armed:
            self._armed = armed
            if armed is not None:
                self._note("armed", armed)

    def here(self, what: object, moment: str) -> None:
        """The controller has come to this place with this event or command."""
        if self._armed is None:
            return
        place, _, action = self._armed.partition(" ")
        if place != f"{type(what).__name__}:{moment}":
            return
        armed, self._armed = self._armed, None
        self._take_out()
        self._note("struck", armed)
        log.warning("a test has this controller end at %s", place)
        # To this very thread: a signal to the process lets it run on until some thread has taken it.
        signal.pthread_kill(threading.get_ident(), SIGNALS[action or "kill"])

    def _take_out(self) -> None:
        rest = self._path.read_text().splitlines()[1:]
        temporary = self._path.with_suffix(".new")
        temporary.write_text("".join(f"{line}\n" for line in rest))
        temporary.replace(self._path)

    def _note(self, what: str, armed: str) -> None:
        with self._struck.open("a") as file:
            file.write(f"{what} {armed.split(maxsplit=1)[0]} {os.getpid()} {time.time_ns() // 1000}\n")
