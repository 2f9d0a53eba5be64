"""A real orch server in a home of its own, driven through the real CLI as a person would."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from orch.api.client import Client
from orch.cli.following import exit_code
from orch.control.home import Home
from orch.control.raylocal import ray_environment
from orch.model.errors import OrchError

WAIT_S = 90.0
POLL_S = 0.02
CLI_LIMIT_S = 400.0


class WaitedError(AssertionError):
    """Something did not happen within its limit."""


def wait_for(what: str, check: Callable[[], Any], limit_s: float = WAIT_S, poll_s: float = POLL_S) -> Any:
    """The first true value of `check`; every wait of the tests ends here, with its limit."""
    deadline = time.monotonic() + limit_s
    while True:
        found = check()
        if found:
            return found
        if time.monotonic() > deadline:
            raise WaitedError(f"{what}: not within {limit_s:g} s")
        time.sleep(poll_s)


@contextmanager
def own_server(config: str = "", *options: str, env: dict[str, str] | None = None) -> Iterator[Server]:
    """A server for one test, with `config` as its config file: started, and stopped whatever happens."""
    home = Path(tempfile.mkdtemp(prefix="orch-"))
    (home / "config.yaml").write_text(config)
    server = Server(home, env)
    with _watched(home):
        try:
            server.start(*options)
            yield server
        finally:
            server.put_away()
            shutil.rmtree(home)


@contextmanager
def _watched(home: Path) -> Iterator[None]:
    """Somebody else puts the server of `home` away if this process does not come to it."""
    watcher = subprocess.Popen(
        [sys.executable, Path(__file__).with_name("watcher.py"), str(os.getpid()), str(home)],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        yield
    finally:
        watcher.kill()
        watcher.wait()


def leave_on_sigterm() -> None:
    """What was started is put away too when this process is told to end (`timeout`, a CI that was cancelled)."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


class Server:
    """`home` is the ORCH_HOME of everything this object starts."""

    def __init__(self, home: Path, env: dict[str, str] | None = None) -> None:
        self.home = home
        self._client: Client | None = None
        # No agent of a test asks a cloud's metadata service: that is no loopback address.
        self.env = {**os.environ, "ORCH_HOME": str(home), "ORCH_METADATA": "off", **(env or {})}
        for name in ("ORCH_CLUSTER", "ORCH_STORE", "RAY_ADDRESS"):
            self.env.pop(name, None)

    def cli(self, *arguments: str, check: int | None = 0, **options: Any) -> subprocess.CompletedProcess[str]:
        options.setdefault("timeout", CLI_LIMIT_S)
        done = subprocess.run(
            [sys.executable, "-m", "orch.cli.main", *arguments],
            env=self.env, text=True, capture_output=True, stdin=subprocess.DEVNULL, check=False, **options,
        )  # fmt: skip
        if check is not None and done.returncode != check:
            raise AssertionError(
                f"orch {' '.join(arguments)}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
            )
        return done

    def start(self, *options: str) -> None:
        self.cli("server", "start", *options)

    def stop(self) -> None:
        self.cli("server", "stop")

    def put_away(self) -> None:
        """At the end of a test, whatever happened in it. A planned stop alone keeps what unfinished jobs hold in shared
        memory, for the next start, which a home that is thrown away does not have.
        """
        with contextlib.suppress(OrchError):
            for job in self.client().jobs():
                if job["ended"] is None:
                    self.cli("cancel", "--now", job["id"], check=None)
        self.stop()

    def submit(self, folder: Path, *options: str) -> str:
        return self.cli("submit", str(folder / "job.yaml"), "--quiet", *options).stdout.strip()

    def job(self, job: str) -> dict[str, Any]:
        """What `orch status JOB -o json` shows."""
        return self.client().job(job)

    def events(self, job: str) -> list[dict[str, Any]]:
        """What `orch events JOB -o json` shows."""
        return self.client().events(job).events

    def client(self) -> Client:
        """Speaks the same API as the CLI, without starting a process for every look."""
        if self._client is None:
            self._client = Client.find(Home(self.home), {})
        return self._client

    def python(self, code: str) -> Any:
        """Runs `code` against this server's Ray in a process of its own; sys.argv[1] is Ray's address, its last line
        of output is JSON.
        """
        record = Home(self.home).read_server()
        assert record is not None
        done = subprocess.run(
            [sys.executable, "-P", "-c", code, record.ray_address],
            env={**self.env, **ray_environment(self.home)},
            text=True, capture_output=True, check=False, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.strip().splitlines()[-1])

    def wait(self, job: str, check: int | None = 0, limit_s: float = WAIT_S) -> dict[str, Any]:
        """Until the job is over; `check`: the exit code that `orch wait` would end with."""
        found = self.client().wait(job, timeout_s=limit_s)
        if check is not None and exit_code(found) != check:
            raise AssertionError(f"{job} is {found['state']}: {found['reason']}\n{found['error']}")
        return found

    # whom to kill

    def pid(self, job: str, kind: str) -> int:
        """Of the newest ProcessStarted (the training process) or AgentUp (the agent)."""
        return [event["data"]["pid"] for event in self.events(job) if event["type"] == kind][-1]

    def kill_training(self, job: str) -> int:
        return _kill(self.pid(job, "ProcessStarted"))

    def kill_agent(self, job: str) -> int:
        return _kill(self.pid(job, "AgentUp"))


def _kill(pid: int) -> int:
    os.kill(pid, signal.SIGKILL)
    return pid


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
