"""Ctrl-C of a verb that follows a job, many times over, on a machine that has no time: for `python -m tests.soak`."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orch_workers.process.stacks import read_stacks
from support.jobs import Following, Gate, wait_output, write_job
from support.server import Server, wait_for

if TYPE_CHECKING:
    import random

BUSY_PER_CPU = 2
MOMENT_S = 0.01
"""A Ctrl-C comes so long after the first line, at most."""
INTERRUPTED = 130
TOO_LONG_S = 20.0
"""Less than one long poll: whoever takes longer was not reached by the signal, but by the end of its wait."""


def interrupts(server: Server, rng: random.Random, count: int) -> dict[str, Any]:
    """`orch events -f` is left by Ctrl-C `count` times, at random moments after its first line."""
    took_s = []
    with tempfile.TemporaryDirectory(prefix="orch-") as name, _busy():
        gate = Gate(Path(name))
        job = server.submit(write_job(Path(name) / "work", f"echo up; {gate.wait}"))
        wait_output(server, job, "up")
        for number in range(count):
            leaver = Following(server, "events", "-f", job)
            leaver.line()
            moment_s = time.monotonic() + rng.random() * MOMENT_S
            wait_for("the random moment", lambda at=moment_s: time.monotonic() >= at, poll_s=0.001)
            began_s = time.monotonic()
            code, said = _interrupted(leaver)
            took_s.append(time.monotonic() - began_s)
            Following.running.remove(leaver)
            assert (code, said) == (INTERRUPTED, ""), f"round {number}: {code}, {said}"
        server.cli("cancel", "--now", job)
    took_s.sort()
    left_after_s = {"median": round(took_s[count // 2], 3), "longest": round(took_s[-1], 3)}
    return {"interrupts": count, "left_after_s": left_after_s}


def _interrupted(leaver: Following) -> tuple[int | None, str]:
    """Its exit code and what it said; None and where it hangs."""
    leaver.process.send_signal(signal.SIGINT)
    try:
        leaver.process.wait(TOO_LONG_S)
    except subprocess.TimeoutExpired:
        signals = [
            line
            for line in Path(f"/proc/{leaver.process.pid}/status").read_text().splitlines()
            if "Sig" in line
        ]
        hangs = read_stacks([leaver.process.pid])
        leaver.kill()
        return None, "\n".join([*signals, hangs])
    return leaver.end()


@contextlib.contextmanager
def _busy() -> Iterator[None]:
    processes = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"])
        for _ in range(BUSY_PER_CPU * (os.cpu_count() or 1))
    ]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()
