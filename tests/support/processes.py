"""Waiting for processes that are nobody's children here, and a guarded command with its events."""

from __future__ import annotations

import os
import queue
import select
import sys
import textwrap
import time
from pathlib import Path

from orch_workers import guard
from orch_workers.process.guarded import Exited, Gone, GuardedProcess

LIMIT_S = 30.0

# A tree of every kind: a child, a grandchild, a double fork, a child in a session of its own.
TREE = textwrap.dedent(
    """
    import os, signal, sys
    def tell():
        with open(os.environ["FIFO"], "w") as fifo:
            fifo.write(f"{os.getpid()}\\n")
    def child(of, *steps):
        if os.fork() == 0:
            for step in steps:
                step()
            tell()
            signal.pause()
            os._exit(0)
    def fork_again():
        if os.fork():
            os._exit(0)
    def ignore_term():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child("plain")
    child("double fork", fork_again)
    child("own session", os.setsid)
    child("daemon", os.setsid, fork_again)
    child("stubborn", ignore_term, os.setsid, fork_again, os.setsid)
    tell()
    if sys.argv[1] == "stay":
        signal.pause()
    open(os.environ["FIFO"] + ".go").read()
    sys.exit(7)
    """
)
TREE_SIZE = 6


def wait_dead(pid: int) -> None:
    """Returns when `pid` has ended; fails at the limit."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([descriptor], [], [], LIMIT_S)[0], f"process {pid} is still alive"
    finally:
        os.close(descriptor)


def is_alive(pid: int) -> bool:
    found = guard.look_up(pid)
    return found is not None and found.alive


class Fifo:
    """Lines that processes of the tree write: `echo $$ >FIFO`. How a test knows that they are there."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "fifo"
        os.mkfifo(self.path)
        os.mkfifo(f"{self.path}.go")
        self._descriptor = os.open(self.path, os.O_RDWR)  # for writing too, so that there is never an end
        self._rest = b""

    def lines(self, count: int) -> list[str]:
        deadline = time.monotonic() + LIMIT_S
        while self._rest.count(b"\n") < count:
            left_s = max(0.0, deadline - time.monotonic())
            assert select.select([self._descriptor], [], [], left_s)[0], f"only {self._rest!r} came"
            self._rest += os.read(self._descriptor, 4096)
        *lines, self._rest = self._rest.split(b"\n", count)
        return [line.decode() for line in lines]

    def go(self) -> None:
        """A line to whoever reads from `$FIFO.go`."""
        Path(f"{self.path}.go").write_text("go\n")

    def pids(self, count: int) -> list[int]:
        return [int(line) for line in self.lines(count)]


class Command:
    """A guarded process in a folder of its own."""

    def __init__(self, folder: Path, argv: list[str], **env: str) -> None:
        self.folder = folder
        self.state_dir = folder / "state"
        self.log_path = folder / "rank-0.log"
        self._events: queue.SimpleQueue[object] = queue.SimpleQueue()
        path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
        self.process = GuardedProcess.start(
            argv,
            env={"PATH": path, "FIFO": str(folder / "fifo"), **env},
            cwd=folder,
            log_path=self.log_path,
            state_dir=self.state_dir,
            on_event=self._events.put,
        )

    def next_event(self) -> object:
        return self._events.get(timeout=LIMIT_S)

    def exited(self) -> Exited:
        event = self.next_event()
        assert isinstance(event, Exited), event
        return event

    def gone(self) -> Gone:
        event = self.next_event()
        assert isinstance(event, Gone), event
        assert self.process.wait_gone(LIMIT_S)
        return event

    def finish(self) -> Exited:
        exited = self.exited()
        self.gone()
        return exited

    @property
    def log(self) -> str:
        return self.log_path.read_text()
