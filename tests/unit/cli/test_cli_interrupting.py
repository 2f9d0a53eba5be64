"""Ctrl-C where Python loses it: in a finalizer, and between a look and a system call. A process of its own for each."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from support.server import wait_for

LIMIT_S = 30.0

LOST_IN_A_FINALIZER = """
import io, os, signal
from orch.cli.interrupting import heard

class Answer(io.RawIOBase):
    def close(self):
        if not self.closed:
            signal.raise_signal(signal.SIGINT)
        super().close()

answer, (never, _) = Answer(), os.pipe()
with {around}:
    del answer
    print("went on", flush=True)
    os.read(never, 1)
"""
LOST_BEFORE_A_CALL = """
import os, signal, threading, time
from orch.cli.interrupting import heard

never, _ = os.pipe()
other = threading.Thread(target=os.read, args=(never, 1), daemon=True)
other.start()
# As when it came right before the call: noted, and the main thread sleeps in the kernel.
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
with {around}:
    print("waits", flush=True)
    os.read(never, 1)
"""
ALONE = "__import__('contextlib').nullcontext()"


def _started(script: str, around: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", script.replace("{around}", around)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline().strip() in {"went on", "waits"}
    return process


def _sleeps(pid: int) -> bool:
    """Its main thread."""
    stat = Path(f"/proc/{pid}/task/{pid}/stat").read_text()
    return stat.rpartition(")")[2].split()[0] == "S"


@pytest.mark.parametrize("script", [LOST_IN_A_FINALIZER, LOST_BEFORE_A_CALL], ids=["finalizer", "call"])
def test_it_is_heard_all_the_same(script: str) -> None:
    process = _started(script, "heard()")
    if script is LOST_BEFORE_A_CALL:
        process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=LIMIT_S)
    assert said.rstrip().endswith("KeyboardInterrupt")


@pytest.mark.parametrize("script", [LOST_IN_A_FINALIZER, LOST_BEFORE_A_CALL], ids=["finalizer", "call"])
def test_python_alone_loses_it(script: str) -> None:
    """Else the test above would prove nothing."""
    process = _started(script, ALONE)
    if script is LOST_BEFORE_A_CALL:
        wait_for(
            "it sleeps in the call", lambda: _sleeps(process.pid), LIMIT_S
        )  # a moment earlier it would hear it
        process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.communicate(timeout=1.0)
    process.kill()
    process.communicate()


BESIDE = """
import os, sys, threading
from orch.cli.interrupting import beside, heard

never, _ = os.pipe()
touched = []

def request():
    try:
        print("waits", flush=True)
        os.read(never, 1)
    except BaseException as error:
        touched.append(error)

assert beside(lambda: threading.current_thread().name) == "request"
try:
    beside(lambda: 1 / 0)
except ZeroDivisionError:
    pass
try:
    with heard():
        beside(request)
except KeyboardInterrupt:
    print("left", touched)
"""


def test_a_request_is_left_alone_when_its_verb_is_interrupted() -> None:
    """In a library that is interrupted a lock may stay locked, and the way out waits for it."""
    process = _started(BESIDE, "")
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=LIMIT_S) == ("left []\n", "")


HANDLED = """
import signal
from orch.cli.interrupting import heard

try:
    with heard():
        signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    print("left")
"""
IGNORED = """
import signal
from orch.cli.interrupting import heard

signal.signal(signal.SIGINT, signal.SIG_IGN)
with heard():
    signal.raise_signal(signal.SIGINT)
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
print("left")
"""


@pytest.mark.parametrize("script", [HANDLED, IGNORED], ids=["handled", "ignored"])
def test_nothing_of_it_is_left_behind(script: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=LIMIT_S
    )
    assert (done.stdout.strip(), done.stderr) == ("left", "")
