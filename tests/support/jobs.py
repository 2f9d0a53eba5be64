"""Small jobs for tests, written down as a person would write them."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, ClassVar

from support.server import WAIT_S, Server, wait_for

LIGHT = {"cpus": 0.1}
"""So that what a test does not look at takes nobody's place."""


def write_job(folder: Path, run: str, files: Mapping[str, str] | None = None, **keys: Any) -> Path:
    """A job file with its workdir's files around it; returns the folder, for `Server.submit`."""
    folder.mkdir(parents=True, exist_ok=True)
    job = {"run": run, "resources": LIGHT, **keys}
    (folder / "job.yaml").write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in job.items()))
    for name, text in (files or {}).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


class Gate:
    """What a job's command waits at (`cat PATH`) until the test opens it, or the command is ended."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "gate"
        os.mkfifo(self.path)

    @property
    def wait(self) -> str:
        """The shell command that waits."""
        return f"read line < {self.path}"

    def open(self) -> None:
        with self.path.open("w") as gate:  # returns when the command is there
            gate.write("go\n")


@contextmanager
def held(path: Path) -> Iterator[None]:
    """No step of a job that was given `path` as HOLD is done within this block, in whatever process."""
    os.mkfifo(path)
    ours = os.open(path, os.O_RDWR)  # who opens it waits in its read, for the end
    try:
        yield
    finally:
        path.unlink()
        os.close(ours)


def wait_state(server: Server, job: str, *states: str) -> dict[str, Any]:
    def there() -> dict[str, Any] | None:
        found = server.client().job(job)
        return found if found["state"] in states else None

    found: dict[str, Any] = wait_for(f"{job} is {' or '.join(states)}", there)
    return found


def wait_output(server: Server, job: str, text: str) -> str:
    """Until the log holds `text`; the whole log."""

    def there() -> str | None:
        log = log_of(server, job)
        return log if text in log else None

    log: str = wait_for(f"{job} writes {text!r}", there)
    return log


def log_of(server: Server, job: str) -> str:
    """What `orch logs JOB` shows."""
    return b"".join(part.data for part in server.client().follow_logs(job, follow=False)).decode()


class Following:
    """An `orch` that goes on until it is told to end, its stdout read line by line."""

    running: ClassVar[list[Following]] = []

    def __init__(self, server: Server, *arguments: str) -> None:
        self.running.append(self)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "orch.cli.main", *arguments],
            env=server.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self._rest = b""

    def line(self) -> str:
        out: IO[bytes] | None = self.process.stdout
        assert out is not None
        while b"\n" not in self._rest:
            assert select.select([out], [], [], WAIT_S)[0], f"only {self._rest!r} came"
            more = os.read(out.fileno(), 65536)
            assert more, f"it ended: {self._rest!r} {self.process.stderr and self.process.stderr.read()!r}"
            self._rest += more
        line, self._rest = self._rest.split(b"\n", 1)
        return line.decode()

    def lines_until(self, text: str) -> list[str]:
        lines = [self.line()]
        while text not in lines[-1]:
            lines.append(self.line())
        return lines

    def kill(self) -> None:
        """What a test that failed left: it must not outlive it."""
        self.process.kill()
        self.process.communicate()

    def interrupt(self) -> tuple[int, str]:
        """Ctrl-C; its exit code and what it said on stderr."""
        self.process.send_signal(signal.SIGINT)
        return self.end()

    def end(self) -> tuple[int, str]:
        _, said = self.process.communicate(timeout=WAIT_S)
        return self.process.returncode, said.decode()
