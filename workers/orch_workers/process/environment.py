"""The environment of a job's command: made from nothing, so that nothing of Ray's or of ours leaks into it.

docs/environment.md is the table for users; a test holds it to this file.
"""

from __future__ import annotations

import hashlib
import json
import os
import pwd
import socket as sockets
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from orch_workers.training.protocol import ENV_CHECKPOINT_DIR, ENV_GENERATION, ENV_JOB_ID, ENV_SOCKET

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

KEPT = ("HOME", "USER", "LANG", "TZ", "LD_LIBRARY_PATH", "PATH", "CUDA_VISIBLE_DEVICES")
"""What is taken over from the machine."""
PATH_DEFAULT = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
LANG_DEFAULT = "C.UTF-8"
LOOPBACK = "127.0.0.1"


def build(
    *,
    base: Mapping[str, str],
    job_env: Mapping[str, str],
    secrets: Mapping[str, str],
    bundle: Path | None,
    job_id: str,
    generation: str,
    socket: Path,
    checkpoint_dir: Path,
    rank: int = 0,
    world_size: int = 1,
    local_rank: int = 0,
    local_world_size: int = 1,
    master_addr: str = LOOPBACK,
    master_port: int | None = None,
    peers: Sequence[str] = (),
    gpus: float = 0,
    interpreter: Path | None = None,
) -> dict[str, str]:
    """The whole environment of one start of the command.

    What orch sets about itself and the ranks wins over the job's secrets, these over its `env`, that over
    what the machine has. `interpreter` is the job's own, else ours. Without `master_port` a free one is
    taken, which is right for a gang of one. `peers`: where each rank may open a server, by rank. Raises ValueError
    with the name, never the value, of what no environment can hold.
    """
    found = {name: base[name] for name in KEPT if name in base}
    _complete(found)
    folder = Path(interpreter or sys.executable).parent
    found["PATH"] = f"{folder}:{found.get('PATH', PATH_DEFAULT)}"
    if interpreter is not None:
        found["VIRTUAL_ENV"] = str(folder.parent)  # as where a person has activated it
    found["PYTHONHASHSEED"] = hash_seed(job_id)
    # Output goes to a file: a killed process must not take its last lines along, nor a reader wait for more.
    found["PYTHONUNBUFFERED"] = "1"
    # Copies of a mebibyte and more go past the caches, as those of a snapshot should: 11 GB/s instead of 6.5.
    found["GLIBC_TUNABLES"] = "glibc.cpu.x86_non_temporal_threshold=0x100000"
    if peers:
        found["TF_CONFIG"] = tf_config(peers, rank)
    granted = found.pop("CUDA_VISIBLE_DEVICES", None)
    if gpus == 0:
        # Ray leaves every GPU visible to whoever was granted none.
        found["CUDA_VISIBLE_DEVICES"] = ""
    found.update(job_env)
    found.update(secrets)
    if gpus > 0 and granted is not None:
        found["CUDA_VISIBLE_DEVICES"] = granted
    if bundle is not None:
        # First: what the job itself has installed under our names might be another version.
        found["PYTHONPATH"] = os.pathsep.join(filter(None, (str(bundle), found.get("PYTHONPATH"))))
    found.update(
        {
            ENV_JOB_ID: job_id,
            ENV_GENERATION: generation,
            ENV_SOCKET: str(socket),
            ENV_CHECKPOINT_DIR: str(checkpoint_dir),
            "RANK": str(rank),
            "WORLD_SIZE": str(world_size),
            "LOCAL_RANK": str(local_rank),
            "LOCAL_WORLD_SIZE": str(local_world_size),
            "MASTER_ADDR": master_addr,
            "MASTER_PORT": str(free_port() if master_port is None else master_port),
        }
    )
    _check(found)
    return found


def tf_config(peers: Sequence[str], rank: int) -> str:
    """TF_CONFIG, as tf.distribute.MultiWorkerMirroredStrategy reads it."""
    task = {"type": "worker", "index": rank}
    return json.dumps({"cluster": {"worker": list(peers)}, "task": task})


def hash_seed(job_id: str) -> str:
    """PYTHONHASHSEED: the same in every start of a job, so that sets are walked in the same order."""
    digest = hashlib.sha256(job_id.encode()).digest()
    return str(int.from_bytes(digest[:4], "big") or 1)  # 0 would mean something else: no seed at all


def free_port() -> int:
    """A port of this machine that is free now."""
    with sockets.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port


def _complete(found: dict[str, str]) -> None:
    """What a service manager leaves out, and every program expects."""
    found.setdefault("LANG", LANG_DEFAULT)
    if "HOME" in found and "USER" in found:
        return
    try:
        user = pwd.getpwuid(os.getuid())
    except KeyError:  # a container with a user id of its own
        found.setdefault("HOME", "/")
        return
    found.setdefault("HOME", user.pw_dir)
    found.setdefault("USER", user.pw_name)


def _check(environment: Mapping[str, str]) -> None:
    for name, value in environment.items():
        if not name or "=" in name or "\0" in name:
            raise ValueError(f"{name!r} cannot be the name of an environment variable")
        if "\0" in value:
            raise ValueError(f"the value of the environment variable {name} has a zero byte in it")
