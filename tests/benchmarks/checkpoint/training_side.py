"""A run of orch in this process, with an agent of its own beside it."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from typing import TYPE_CHECKING, Any

from tests.benchmarks.report import ROOT

from orch_workers.training import session

if TYPE_CHECKING:
    from collections.abc import Iterator

    from orch_workers.training.run import Run

TUNABLES = {"GLIBC_TUNABLES": "glibc.cpu.x86_non_temporal_threshold=0x100000"}
"""What an agent sets for its training process; read by the C library when a process starts."""
AGENT = "tests.benchmarks.checkpoint.agent_side"


@contextlib.contextmanager
def run_of(state: dict[str, Any]) -> Iterator[Run]:
    folder = tempfile.mkdtemp(prefix="orch-bench-", dir="/dev/shm")
    agent = subprocess.Popen(
        [sys.executable, "-m", AGENT, folder], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert agent.stdout is not None
        assert agent.stdout.readline() == b"ready\n"
        os.environ["ORCH_SOCKET"] = f"{folder}/agent.sock"
        options = session.Options(skip="replay", restore=True, seed=0, local_folder=None, local_every_s=600.0)
        run = session.begin(state, options)
        try:
            yield run
        finally:
            run.give_up()
    finally:
        os.environ.pop("ORCH_SOCKET", None)
        agent.communicate()
        shutil.rmtree(folder, ignore_errors=True)
