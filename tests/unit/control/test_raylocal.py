"""What ends the Ray of a home, tried on processes that carry its token as all of Ray's do."""

from __future__ import annotations

import os
import subprocess
import sys

from orch.control.raylocal import TOKEN_VARIABLE, ray_processes, stop_ray

STARTS_ANOTHER_WHEN_IT_ENDS = """
import os, signal

def told(*_):
    if os.fork() == 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pause()
    os._exit(0)

signal.signal(signal.SIGTERM, told)
print("up", flush=True)
signal.pause()
"""


def test_what_was_started_while_the_rest_ended_is_ended_too(tmp_path):
    env = {**os.environ, TOKEN_VARIABLE: str(tmp_path / "ray-token")}
    command = [sys.executable, "-c", STARTS_ANOTHER_WHEN_IT_ENDS]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == b"up\n"
        assert stop_ray(tmp_path) == 2
    assert not ray_processes(tmp_path)
