"""Logs of agents on other machines, copied to the server's home while they grow: `orch logs` reads them there.

A log that the server's machine sees itself (the agent is on it, or they share the home) needs no copy. What has not
been copied when a machine dies is lost with it.
"""

from __future__ import annotations

import fcntl
import logging
import os
import threading
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from orch.control.home import Home

PAUSE_S = 1.0
"""Between two rounds."""
PART_BYTES = 1 << 20
PARTS_MAX = 64
"""Of one log in one round: no log keeps the others waiting."""
LAST_PARTS_MAX = 1024
"""When a job is closed: the rest, up to a gigabyte."""
CALL_LIMIT_S = 3.0
MARK = ".copied"
"""Beside a log that is a copy: the one who writes it is this server."""

log = logging.getLogger("orch.logs")


class Cluster(Protocol):
    """What is needed of `orch.control.cluster.Cluster`."""

    def agents(self) -> Iterable[tuple[str, int, int]]: ...
    def find_agent(self, job_id: str, attempt: int, rank: int) -> Any | None: ...
    def call(self, handle: Any, method: str, *args: Any, limit_s: float = ...) -> Any: ...


class LogCopies:
    """`start` once. `finish` before the agents of a job are ended."""

    def __init__(self, home: Home, cluster: Cluster) -> None:
        self._home, self._cluster = home, cluster
        self._ended = threading.Event()
        self._silent: set[tuple[str, int, int]] = set()
        """Agents that could not be asked, of which that was said."""

    def start(self) -> None:
        threading.Thread(target=self._run, name="logs", daemon=True).start()

    def _run(self) -> None:
        while not self._ended.wait(PAUSE_S):
            try:
                self.round()
            except Exception as error:  # Ray's head that is away, for one
                log.info("no logs can be copied just now: %s", error)

    def round(self) -> None:
        agents = set(self._cluster.agents())
        self._silent &= agents
        for agent in agents:
            self._take(agent, PARTS_MAX)

    def finish(self, job: str) -> None:
        """The rest of a job's logs. One that could not be asked just before is not waited for again."""
        for agent in self._cluster.agents():
            if agent[0] == job and agent not in self._silent:
                self._take(agent, LAST_PARTS_MAX)

    def _take(self, agent: tuple[str, int, int], parts_max: int) -> None:
        path = self._home.log_path(*agent)
        mark = path.with_name(path.name + MARK)
        if path.exists() and not mark.exists():
            return
        try:
            handle = self._cluster.find_agent(*agent)
            if handle is not None:
                self._copy(handle, path, mark, parts_max)
            self._silent.discard(agent)
        except Exception as error:  # dead, cut off, or of a version that cannot tell
            if agent not in self._silent:
                log.info("the log of %s, attempt %d, rank %d cannot be copied just now: %s", *agent, error)
            self._silent.add(agent)

    def _copy(self, handle: Any, path: Path, mark: Path, parts_max: int) -> None:
        if not path.exists():
            data = self._part(handle, 0)
            if not data or not _made(path, mark):
                return  # nothing to copy yet, or it is there after all: the home is shared, and slow to show it
        with path.open("r+b") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return  # another round, or a controller that does not know yet that it was replaced
            offset = file.seek(0, os.SEEK_END)
            for _ in range(parts_max):
                data = self._part(handle, offset)
                file.write(data)
                offset += len(data)
                if len(data) < PART_BYTES:
                    return

    def _part(self, handle: Any, offset: int) -> bytes:
        data: bytes = self._cluster.call(handle, "log_part", offset, PART_BYTES, limit_s=CALL_LIMIT_S)
        return data


def _made(path: Path, mark: Path) -> bool:
    """Makes an empty copy. The mark comes first: a log without one is the agent's own, and never written to."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    mark.touch(mode=0o600)
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except FileExistsError:
        mark.unlink(missing_ok=True)
        return False
    return True
