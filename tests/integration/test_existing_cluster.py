"""A Ray that was there before orch: `--cluster ADDRESS` uses it, and stopping orch leaves it running."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import ray

from orch.control.raylocal import LOOPBACK, answers, free_port
from support.server import Server, wait_for

pytestmark = pytest.mark.integration


RAY = "import ray, sys; ray.__version__ = sys.argv.pop(1); from ray.scripts.scripts import main; main()"


@contextmanager
def foreign_ray(version: str = ray.__version__) -> Iterator[tuple[str, Path]]:
    """Address and folder of a Ray that somebody else started, without a token; `version`: what it takes itself for."""
    folder = Path(tempfile.mkdtemp(prefix="orch-ray-"))
    address = f"{LOOPBACK}:{free_port()}"
    env = {
        **os.environ,
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "FOREIGN_RAY": str(folder),
    }
    command = [sys.executable, "-c", RAY, version, "start", "--head", f"--node-ip-address={LOOPBACK}"]
    command += [
        f"--port={address.rpartition(':')[2]}",
        "--include-dashboard=false",
        f"--temp-dir={folder}/ray",
    ]
    command += ["--num-cpus=2", "--object-store-memory=80000000", f"--ray-client-server-port={free_port()}"]
    command += ["--min-worker-port=0", "--max-worker-port=0", "--dashboard-agent-listen-port=0"]
    if "grpc" not in sys.modules and not _has_grpc():
        command = [part for part in command if "ray-client" not in part]
    try:
        subprocess.run(command, env=env, check=True, capture_output=True, timeout=180)
        yield address, folder
    finally:
        for process in _of(folder):
            process.kill()
        wait_for("the foreign Ray is gone", lambda: not _of(folder))
        shutil.rmtree(folder)


def _has_grpc() -> bool:
    from importlib.util import find_spec

    return find_spec("grpc") is not None


def _of(folder: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if (
                process.environ().get("FOREIGN_RAY") == str(folder)
                and process.status() != psutil.STATUS_ZOMBIE
            ):
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


WITHOUT_TOKEN = {"RAY_AUTH_MODE": "disabled", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}


def test_a_cluster_that_is_there_is_used_and_left_running(tmp_path: Path) -> None:
    with foreign_ray() as (address, folder):
        _used_and_left(address, folder, tmp_path)


def _used_and_left(address: str, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("name: guest\nrun: echo from the foreign cluster\n")
    home = Path(tempfile.mkdtemp(prefix="orch-"))
    server = Server(home, WITHOUT_TOKEN)
    try:
        done = server.cli("submit", str(tmp_path / "job.yaml"), "--cluster", address, "--follow")
        assert "from the foreign cluster" in done.stdout
        assert not (home / "ray.json").exists(), "no Ray of our own was started"
    finally:
        server.stop()
    assert answers(address)
    assert _of(folder)
    shutil.rmtree(home)


def test_a_cluster_that_is_not_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("run: 'true'\n")
    home = Path(tempfile.mkdtemp(prefix="orch-"))
    address = f"{LOOPBACK}:{free_port()}"
    done = Server(home).cli("submit", str(tmp_path / "job.yaml"), "--cluster", address, check=5)
    assert address in done.stderr
    assert "Traceback" not in done.stderr
    shutil.rmtree(home)


def test_a_cluster_of_another_version_is_refused_in_a_sentence(tmp_path: Path) -> None:
    home = Path(tempfile.mkdtemp(prefix="orch-"))
    server = Server(home, WITHOUT_TOKEN)
    with foreign_ray("2.59.1") as (address, _):
        said = server.cli("server", "start", "--cluster", address, check=5).stderr
    assert (
        f"{address} runs Ray 2.59.1 on Python {platform.python_version()}, and here is Ray {ray.__version__}"
        in said
    )
    assert "Traceback" not in said
    shutil.rmtree(home)
