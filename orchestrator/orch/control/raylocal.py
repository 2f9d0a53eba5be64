"""The Ray that orch starts on one machine: loopback only, token, no dashboard, nothing phones home.

The truth about jobs is in the store, and `orch server start` on the same home resumes every unfinished job from
it. With `ray_state: disk` Ray's own state is on disk too, so that agents on other machines outlive this one's Ray.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil

from orch.control.raysettings import DETECTION, MANNERS
from orch.model.errors import NoServer

OBJECT_STORE_BYTES = 80 << 20
"""Ray's smallest sensible store: orch passes no data through it."""
START_LIMIT_S = 90.0
STOP_GRACE_S = 1.0
STOP_ROUNDS_MAX = 5
LOOPBACK = "127.0.0.1"
TOKEN_VARIABLE = "RAY_AUTH_TOKEN_PATH"  # noqa: S105 - the name of a variable


def ray_environment(home: Path, environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """The variables every process of this Ray needs before it imports ray. Of DETECTION, what `environ` (else this
    process' environment) says goes before.
    """
    given = os.environ if environ is None else environ
    return {
        **{name: given.get(name, value) for name, value in DETECTION.items()},
        # Undocumented, and the only way to keep Ray on loopback: without it 127.0.0.1 is rewritten to the
        # machine's address and everything listens on all interfaces. A test reads the listening sockets.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        TOKEN_VARIABLE: str(home / "ray-token"),
        **MANNERS,
    }


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port


def answers(address: str, limit_s: float = 1.0) -> bool:
    """Does anything listen there? `ray.init` on a dead address tries for many minutes (FIELD)."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=limit_s):
            return True
    except OSError:
        return False


def recorded_address(home: Path) -> str | None:
    """The address of the Ray this home started last, if it still answers and is still the same process."""
    try:
        record = json.loads((home / "ray.json").read_text())
        alive = _same_process(record["gcs_pid"], record["gcs_started"])
    except (OSError, ValueError, KeyError):
        return None
    address: str = record["address"]
    return address if alive and answers(address) else None


def left_address(home: Path) -> str | None:
    """Where the head that died answered, if it left its state on disk (`ray_state: disk`): it can be started again."""
    try:
        record = json.loads((home / "ray.json").read_text())
        return str(record["address"]) if record["state"] == "disk" and any((home / "gcs").iterdir()) else None
    except (OSError, ValueError, KeyError):
        return None


def start_ray(
    home: Path,
    *,
    num_cpus: int | None = None,
    num_gpus: int | None = None,
    state: str = "memory",
    again: str | None = None,
) -> str:
    """Starts a head node for this home and returns its address; NoServer with Ray's own words otherwise.

    `again`: the address of a head that died (`left_address`): the same one, from the state that it left on disk.
    The token (`Home.ensure_ray_token`) is there already: Ray would make its own, and let everybody read it.
    """
    if again is None:
        shutil.rmtree(home / "gcs", ignore_errors=True)
    for folder in (home / "node", home / "ray", home / "gcs"):
        folder.mkdir(mode=0o700, exist_ok=True)
    temp = _short_temp(home)
    address = again or f"{LOOPBACK}:{free_port()}"
    # A head that was killed leaves it behind, and Ray takes a raylet that waits for that head for the head itself.
    (temp / "ray_current_cluster").unlink(missing_ok=True)
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head"),
        f"--node-ip-address={LOOPBACK}",
        f"--port={address.rpartition(':')[2]}",
        "--include-dashboard=false",
        "--disable-usage-stats",
        f"--object-store-memory={OBJECT_STORE_BYTES}",
        f"--temp-dir={temp}",
        # Ports of the operating system's choosing: two homes on one machine must not collide.
        *("--min-worker-port=0", "--max-worker-port=0", "--dashboard-agent-listen-port=0"),
    ]
    if find_spec("grpc") is not None:
        # With its packages installed, Ray starts a Ray Client server that nobody asked for, at a fixed port.
        command.append(f"--ray-client-server-port={free_port()}")
    if num_cpus is not None:
        command.append(f"--num-cpus={num_cpus}")
    if num_gpus is not None:
        command.append(f"--num-gpus={num_gpus}")
    environment = {**os.environ, **ray_environment(home)}
    if state == "disk":
        environment |= {"RAY_gcs_storage": "rocksdb", "RAY_gcs_storage_path": str(home / "gcs")}
    log_path = home / "ray-start.log"
    with log_path.open("wb") as log:
        try:
            done = subprocess.run(
                command,
                env=environment,
                cwd=home / "node",
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                timeout=START_LIMIT_S,
                check=False,
            )
            failed = done.returncode != 0
        except subprocess.TimeoutExpired:
            failed = True
    if failed:
        tail = log_path.read_text(errors="replace").strip().splitlines()[-8:]
        stop_ray(home)
        raise NoServer("Ray did not start on this machine. Its last words:\n  " + "\n  ".join(tail))
    _record(home, address, state)
    return address


def stop_ray(home: Path) -> int:
    """Ends every process of this home's Ray (never `ray stop`, which ends every Ray of the machine).

    Returns how many processes were ended. Agents die with their raylet, their guards end the trees below.
    """
    ended: set[int] = set()
    # More than once: a raylet that is told to end may have started a worker in that moment, which would then look for
    # its raylet for half a minute.
    for _ in range(STOP_ROUNDS_MAX):
        ours = ray_processes(home)
        if not ours:
            break
        ended.update(process.pid for process in ours)
        for process in ours:
            _quietly(process.terminate)
        _, alive = psutil.wait_procs(ours, timeout=STOP_GRACE_S)
        for process in alive:
            _quietly(process.kill)
        psutil.wait_procs(alive, timeout=STOP_GRACE_S)
    (home / "ray.json").unlink(missing_ok=True)
    return len(ended)


def ray_processes(home: Path) -> list[psutil.Process]:
    """Known by the path of this home's token, which orch gives to every process of its Ray and to nothing else.

    A person may have it in a shell, to use Ray's own commands: neither we nor who started us belong to it.
    """
    ours = {os.getpid(), *(above.pid for above in psutil.Process().parents())}
    found: dict[int, psutil.Process] = {}
    for process in psutil.process_iter():
        if process.pid not in ours and _environment(process).get(TOKEN_VARIABLE) == str(home / "ray-token"):
            found[process.pid] = process
    return list(found.values())


def _environment(process: psutil.Process) -> dict[str, str]:
    try:
        return process.environ()
    except (psutil.Error, OSError):
        return {}  # gone meanwhile, or another user's


def _quietly(act: Any) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        act()


def _short_temp(home: Path) -> Path:
    """Ray puts Unix sockets some 60 characters below its temp folder, and 107 bytes are all a socket gets."""
    wanted = home / "ray"
    if len(str(wanted)) <= 40:
        return wanted
    import hashlib

    mark = hashlib.sha256(str(home).encode()).hexdigest()[:10]
    short = Path(f"/tmp/orch-{os.getuid()}/ray-{mark}")  # noqa: S108 - the folder is ours and 0700
    short.parent.mkdir(mode=0o700, exist_ok=True)
    short.mkdir(mode=0o700, exist_ok=True)
    return short


def _record(home: Path, address: str, state: str) -> None:
    gcs = next(p for p in ray_processes(home) if "gcs_server" in " ".join(p.cmdline()[:1]))
    record = {
        "address": address,
        "gcs_pid": gcs.pid,
        "gcs_started": gcs.create_time(),
        "at": time.time(),
        "state": state,
    }
    temporary = home / "ray.json.new"
    temporary.write_text(json.dumps(record))
    temporary.replace(home / "ray.json")


def _same_process(pid: int, started: float) -> bool:
    try:
        return abs(psutil.Process(pid).create_time() - started) < 1.0
    except psutil.NoSuchProcess:
        return False
