"""Real processes that do not move, and one that does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import psutil
import pytest

from orch_workers.process.stacks import read_stacks
from support.server import wait_for

STILL = {
    "a deadlock": "import threading; lock = threading.Lock(); lock.acquire(); print('on', flush=True); lock.acquire()",
    "a GIL held in C": "import ctypes; print('on', flush=True); ctypes.PyDLL(None).sleep(1000)",
    "a wait that nobody ends": (
        "import socket; a, b = socket.socketpair(); print('on', flush=True); a.recv(1)"
    ),
}
BUSY = """
def one(n): return sum(i * i for i in range(n))
def other(n): return [str(i) for i in range(n)]
print("on", flush=True)
while True:
    one(3000)
    other(3000)
"""


@pytest.fixture
def start():
    started = []

    def begin(code):
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        started.append(process)
        assert process.stdout.readline() == b"on\n"
        return process

    yield begin
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.parametrize("code", STILL.values(), ids=STILL)
def test_what_stands_still_shows_the_same_stacks(start, code):
    process = start(code)
    wait_for("it waits", lambda: psutil.Process(process.pid).status() == psutil.STATUS_SLEEPING)
    seen = [read_stacks([process.pid]) for _ in range(2)]
    assert seen[0].frames is not None
    assert seen[0].frames == seen[1].frames
    assert "<module>" in seen[0].text


def test_what_works_shows_others(start):
    process = start(BUSY)
    wait_for("its stacks change", lambda: len({read_stacks([process.pid]).frames for _ in range(4)}) > 1)


def test_a_stopped_process_is_named(start):
    process = start(STILL["a deadlock"])
    os.kill(process.pid, signal.SIGSTOP)
    wait_for("it is stopped", lambda: psutil.Process(process.pid).status() == psutil.STATUS_STOPPED)
    found = read_stacks([process.pid])
    assert found.stopped == (process.pid,)
    assert "stopped by a signal" in found.text


def test_what_is_no_python_and_what_is_gone_is_left_out(start):
    process = subprocess.Popen(["sleep", "1000"])
    try:
        assert read_stacks([process.pid]).frames is None
    finally:
        process.kill()
        process.wait()
    assert read_stacks([process.pid]).text == ""
