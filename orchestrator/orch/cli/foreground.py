"""`orch server run`: the server for as long as this command lives, for containers, batch systems and systemd.

The server itself stays what it is, a Ray actor; this process starts it, stays beside it, starts it again if it is gone
for good, and ends it when it is told to end. With `--ray` the head of the cluster is a child of this process too.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from typing import TYPE_CHECKING, Any

from orch.cli.launch import start_server, stop_server
from orch.cli.output import say
from orch.control.raylocal import answers
from orch.control.raysettings import cluster_environment
from orch.model.errors import NoServer, OrchError, WrongUse

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from orch.cli.connect import Target
    from orch.cli.output import Progress

HEAD_LIMIT_S = 120.0
"""For Ray's head to answer after its start."""
HEAD_POLL_S = 0.2
LOOK_S = 5.0
"""How often the server is looked at."""
AWAY_LIMIT_S = 60.0
"""Ray itself restarts a controller that died, and a busy machine may be slow to answer: only after so long is the
server started from here."""
TRIES_MAX = 3
"""Starts in a row that failed; then this process ends, and whoever supervises it decides."""
HEAD_END_LIMIT_S = 40.0
"""Ray drains its node first (`RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S`)."""


class Foreground:
    """One life of the command. `serve` returns when it was told to end."""

    def __init__(
        self,
        target: Target,
        shown: Progress,
        *,
        cpus: int | None = None,
        gpus: int | None = None,
        ray: str | None = None,
        leave: bool = False,
        listen: Mapping[str, Any] | None = None,
    ) -> None:
        """`ray`: the command that starts the cluster's head and stays (`ray start --head --block …`). `leave`: at the
        end the agents of the cluster are left at work, for a server that comes back to them.
        """
        if not target.can_start:
            raise WrongUse(f"the server at {target.address} is not run from here; do it on that machine")
        if target.kind == "home" and (ray is not None or leave):
            raise WrongUse(
                "--ray and --leave need --cluster: the Ray of one machine comes and goes with its server"
            )
        self._target, self._shown, self._ray, self._leave = target, shown, ray, leave
        self._cpus, self._gpus, self._listen = cpus, gpus, listen
        self._told = threading.Event()
        self._head: subprocess.Popen[bytes] | None = None

    def serve(self) -> None:
        """NoServer if the server cannot be kept alive from here."""
        with self._listening():
            try:
                self._start_head()
                if not self._told.is_set():
                    say(f"the server answers at {self._start()['url']}")
                    self._stay()
            finally:
                self._end()

    @contextlib.contextmanager
    def _listening(self) -> Iterator[None]:
        """SIGTERM and Ctrl-C are the way to end it."""
        before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        for number in before:
            signal.signal(number, lambda _number, _frame: self._told.set())
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _start_head(self) -> None:
        if self._ray is None:
            return
        self._shown.show("starting Ray's head")
        # A session of its own: the Ctrl-C that ends this command must reach Ray last, and from here.
        self._head = subprocess.Popen(
            ["/bin/sh", "-c", f"exec {self._ray}"],
            env={**os.environ, **cluster_environment()},
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline = time.monotonic() + HEAD_LIMIT_S
        while not self._told.is_set() and not answers(self._target.address):
            self._assert_head_lives()
            if time.monotonic() > deadline:
                raise NoServer(f"Ray's head does not answer at {self._target.address} ({HEAD_LIMIT_S:g} s)")
            self._told.wait(HEAD_POLL_S)

    def _assert_head_lives(self) -> None:
        if self._head is not None and self._head.poll() is not None:
            raise NoServer(f"Ray's head has ended with exit code {self._head.returncode}")

    def _start(self) -> dict[str, str]:
        return start_server(self._target, self._shown, cpus=self._cpus, gpus=self._gpus, listen=self._listen)

    def _stay(self) -> None:
        heard, failures = time.monotonic(), 0
        while not self._told.wait(LOOK_S):
            self._assert_head_lives()
            if self._answers():
                heard, failures = time.monotonic(), 0
            elif time.monotonic() - heard > AWAY_LIMIT_S:
                say(f"orch: the server has not answered for {AWAY_LIMIT_S:g} s; starting it")
                try:
                    self._start()
                    heard, failures = time.monotonic(), 0
                except OrchError as error:
                    failures += 1
                    say(f"orch: {error.message}")
                    if failures >= TRIES_MAX:
                        raise

    def _answers(self) -> bool:
        record = self._target.home.read_server()
        return record is not None and answers(record.url.partition("://")[2])

    def _end(self) -> None:
        try:
            if not self._leave:
                stop_server(self._target.home, self._shown)
        finally:
            if self._head is not None and self._head.poll() is None:
                self._shown.show("ending Ray's head")
                self._head.terminate()
                try:
                    self._head.wait(HEAD_END_LIMIT_S)
                except subprocess.TimeoutExpired:
                    self._head.kill()
                    self._head.wait()
