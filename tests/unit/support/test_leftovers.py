"""The check that nothing is left can fail."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys

import pytest

from orch_workers.config import WorkerPaths
from support import leftovers

JOB = f"leftover-{os.getpid()}"


@contextlib.contextmanager
def sleeper(**env: str):
    """A process that is there until the block ends."""
    command = [sys.executable, "-c", "print(flush=True); input()"]
    with subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()  # its environment is the one asked for only after exec
        yield process
        process.kill()


def test_a_process_of_a_job_is_found(tmp_path):
    with sleeper(ORCH_JOB_ID=JOB) as process:
        (found,) = leftovers.of_jobs(tmp_path, [JOB])
        assert str(process.pid) in found
        assert leftovers.of_jobs(tmp_path, ["another"]) == []
    assert leftovers.of_jobs(tmp_path, [JOB]) == []


def test_folders_of_a_job_are_found(tmp_path):
    paths = WorkerPaths(JOB, 0, tmp_path / "node", tmp_path / "jobs")
    paths.job.mkdir(parents=True)
    assert leftovers.of_jobs(tmp_path, [JOB]) == [str(paths.job)]


def test_a_process_of_a_stopped_server_is_a_failure(tmp_path, monkeypatch):
    monkeypatch.setattr(leftovers, "GONE_LIMIT_S", 0.0)
    leftovers.assert_nothing_left(tmp_path, [])
    with sleeper(ORCH_HOME=str(tmp_path)) as process, pytest.raises(AssertionError, match=str(process.pid)):
        leftovers.assert_nothing_left(tmp_path, [])
