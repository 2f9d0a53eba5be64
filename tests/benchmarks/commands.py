"""The two commands that people type most, beside Ray's Jobs API: `submit` to the first line of output, `status`."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rich.console import Console
from tests.benchmarks.processes import running, scratch
from tests.benchmarks.report import Report
from tests.support.server import Server, wait_for

from orch.control.raylocal import free_port

COMMAND = "sh -c 'echo first-$((6*7))'"
FIRST_LINE = "first-42"
"""What COMMAND prints; it does not stand in COMMAND itself, which clients repeat on their own stdout."""
LIMIT_S = 120.0
RAY_READY_LIMIT_S = 90.0
WARM_UPS = 1


def measure_submit(count: int, console: Console) -> Report:
    """`orch submit --follow` and `ray job submit` of the same command, in turns, on warm servers."""
    report = Report("submit to first line of output", by="first_line_s", ours="orch submit")
    with scratch("sub") as folder, _orch_server(folder) as server, _ray(folder) as (address, ray_env):
        work = _workdir(folder)
        ray = [*_ray_cli("job", "submit"), "--address", address]
        sides: dict[str, tuple[list[str], Mapping[str, str]]] = {
            "orch submit": (_orch_cli("submit", "--follow", str(work / "job.yaml")), server.env),
            "ray job submit --working-dir": ([*ray, "--working-dir", str(work), "--", *_words()], ray_env),
            "ray job submit": ([*ray, "--", *_words()], ray_env),
        }
        for number in range(-WARM_UPS, count):
            for name, (command, env) in sides.items():
                took_s, whole_s = _until_line(command, env)
                if number >= 0:
                    report.add(name, first_line_s=took_s, command_ends_s=whole_s)
                    console.print(f"{name} {number + 1}/{count}: {took_s:.2f} s")
    return report


def measure_status(count: int, console: Console) -> Report:
    """`orch status` and `ray job list`, in turns, on warm servers with the same number of ended jobs."""
    report = Report("status", by="status_s", ours="orch status", facts={"jobs": 3})
    with scratch("stat") as folder, _orch_server(folder) as server, _ray(folder) as (address, ray_env):
        work = _workdir(folder)
        for _ in range(report.facts["jobs"]):
            server.wait(server.submit(work))
            _run([*_ray_cli("job", "submit"), "--address", address, "--", *_words()], ray_env)
        sides: dict[str, tuple[list[str], Mapping[str, str]]] = {
            "orch status": (_orch_cli("status"), server.env),
            "ray job list": ([*_ray_cli("job", "list"), "--address", address], ray_env),
        }
        for number in range(-WARM_UPS, count):
            for name, (command, env) in sides.items():
                took_s = _run(command, env)
                if number >= 0:
                    report.add(name, status_s=took_s)
                    console.print(f"{name} {number + 1}/{count}: {took_s:.3f} s")
    return report


def _words() -> list[str]:
    return ["sh", "-c", "echo first-$((6*7))"]


def _workdir(folder: Path) -> Path:
    work = folder / "work"
    work.mkdir()
    (work / "job.yaml").write_text(json.dumps({"name": "trivial", "run": COMMAND}))
    return work


def _until_line(command: Sequence[str], env: Mapping[str, str]) -> tuple[float, float]:
    """Seconds until FIRST_LINE stands on the command's stdout, and until the command has ended."""
    started = time.monotonic()
    took_s: float | None = None
    with subprocess.Popen(
        command,
        env=dict(env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        said = []
        for line in process.stdout:
            said.append(line)
            if took_s is None and line.strip().endswith(FIRST_LINE):
                took_s = time.monotonic() - started
        code = process.wait(LIMIT_S)
    if took_s is None or code != 0:
        raise RuntimeError(f"{command}: exit {code}\n{''.join(said[-20:])}")
    return took_s, time.monotonic() - started


def _run(command: Sequence[str], env: Mapping[str, str]) -> float:
    started = time.monotonic()
    done = subprocess.run(
        command,
        env=dict(env),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT_S,
    )
    took_s = time.monotonic() - started
    if done.returncode:
        raise RuntimeError(f"{command}: exit {done.returncode}\n{done.stdout}\n{done.stderr}")
    return took_s


def _orch_cli(*words: str) -> list[str]:
    return [sys.executable, "-m", "orch.cli.main", *words]


def _ray_cli(*words: str) -> list[str]:
    return [sys.executable, "-m", "ray.scripts.scripts", *words]


@contextlib.contextmanager
def _orch_server(folder: Path) -> Iterator[Server]:
    server = Server(folder / "home")
    try:
        server.start()
        yield server
    finally:
        server.stop()


@contextlib.contextmanager
def _ray(folder: Path) -> Iterator[tuple[str, Mapping[str, str]]]:
    """A head node with its dashboard, on loopback as far as Ray lets one; address of its Jobs API."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("ORCH_", "RAY_"))}
    env |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled", "PYTHONUNBUFFERED": "1"}
    port, dashboard = free_port(), free_port()
    address = f"http://127.0.0.1:{dashboard}"
    options = [
        "--head",
        "--block",
        "--include-dashboard=true",
        "--dashboard-host=127.0.0.1",
        f"--port={port}",
        f"--dashboard-port={dashboard}",
        "--dashboard-agent-listen-port=0",
        f"--temp-dir={folder / 'ray'}",
        "--disable-usage-stats",
        "--num-cpus=2",
    ]
    with running([*_ray_cli("start"), *options], env, folder / "ray.log") as head:

        def ready() -> bool:
            if head.poll() is not None:
                raise RuntimeError(f"Ray did not start:\n{(folder / 'ray.log').read_text()[-3000:]}")
            return _answers(f"{address}/api/jobs/")

        wait_for("Ray's Jobs API", ready, RAY_READY_LIMIT_S)
        yield address, env


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5.0) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False
