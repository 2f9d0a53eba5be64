"""What a killed guard left behind: found by record and by mark, and killed.

Everything a command starts carries a mark in its environment that follows from the worker's state folder, and
the agent keeps a list of the tree on disk. So whoever comes later on this machine finds and kills what
survived, even if guard and agent were killed in the same instant and the list is old.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from pathlib import Path
from signal import SIGKILL

from orch_workers import guard

TREE_NAME = "tree.json"
MARK_ENV = "ORCH_TREE"
SWEEP_LIMIT_S = 15.0
SWEEP_PAUSE_S = 0.02
LOCK_PAUSE_S = 0.02
_EMPTY_SCANS = 2
"""A scan of /proc is no snapshot: nothing is left when it found nothing this often in a row."""


class SurvivorsError(RuntimeError):
    """Processes that SIGKILL has not ended within the limit."""

    def __init__(self, message: str, pids: tuple[int, ...] = ()) -> None:
        super().__init__(message, pids)
        self.pids = pids

    def __str__(self) -> str:
        return str(self.args[0])


class PredecessorAliveError(RuntimeError):
    """An earlier guard of this worker is still at work."""


def record_tree(state_dir: Path, processes: list[tuple[int, int]]) -> None:
    """Writes down pid and start time of every process of the tree, the guard among them."""
    path = _tree_path(state_dir)
    beside = path.with_suffix(".new")
    beside.write_text(json.dumps({"boot_id": _boot_id(), "processes": processes}))
    beside.replace(path)


def forget_tree(state_dir: Path) -> None:
    _tree_path(state_dir).unlink(missing_ok=True)


def mark_of(state_dir: Path) -> str:
    """What every process of the worker with this state folder carries as ORCH_TREE."""
    return hashlib.sha256(f"{os.getuid()}:{state_dir.resolve()}".encode()).hexdigest()[:32]


def wait_predecessor(state_dir: Path, limit_s: float) -> list[int]:
    """Waits until no guard of this worker is at work, then kills what is left of its tree; returns the pids.

    Raises PredecessorAliveError at the limit, and SurvivorsError when something does not die.
    """
    state_dir.mkdir(parents=True, exist_ok=True)
    lock = os.open(state_dir / guard.LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        deadline = time.monotonic() + limit_s
        while not _try_lock(lock):
            if time.monotonic() >= deadline:
                raise PredecessorAliveError(
                    f"an earlier guard still holds {state_dir / guard.LOCK_NAME} after {limit_s:g} s: "
                    "another agent of this worker lives on this machine, or a process of it cannot be killed"
                )
            time.sleep(LOCK_PAUSE_S)
        try:
            return sweep(state_dir)
        finally:
            fcntl.flock(lock, fcntl.LOCK_UN)
    finally:
        os.close(lock)


def sweep(state_dir: Path, limit_s: float = SWEEP_LIMIT_S) -> list[int]:
    """Kills every process of this worker's tree that is left, and returns their pids. Repeatable.

    Only for whoever knows that no guard is at work there. Raises SurvivorsError at the limit.
    """
    killed: set[int] = set()
    deadline = time.monotonic() + limit_s
    empty = 0
    while empty < _EMPTY_SCANS:
        left = survivors(state_dir)
        if not left:
            empty += 1
            continue
        empty = 0
        if time.monotonic() >= deadline:
            raise SurvivorsError(f"still alive {limit_s:g} s after SIGKILL: pids {left}", tuple(left))
        for pid in left:
            guard.send(pid, SIGKILL)
        killed.update(left)
        time.sleep(SWEEP_PAUSE_S)
    forget_tree(state_dir)
    return sorted(killed)


def survivors(state_dir: Path) -> list[int]:
    """Living processes of this worker's tree: recorded or marked, and all below them."""
    table = guard.all_processes()
    mark = f"{MARK_ENV}={mark_of(state_dir)}".encode()
    recorded = set(_read_record(state_dir))
    found: set[int] = set()
    for process in table.values():
        if (process.pid, process.start_ticks) in recorded or mark in _environment_of(process.pid):
            found.add(process.pid)
            found.update(other.pid for other in guard.below(table, process.pid))
    # Never ourselves, nor who started us (a test that runs inside a job, say).
    me: int | None = os.getpid()
    while me in table:
        found.discard(me)
        me = table[me].parent
    return sorted(pid for pid in found if table[pid].alive)


def _environment_of(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []  # gone, or another user's


def _read_record(state_dir: Path) -> list[tuple[int, int]]:
    try:
        record = json.loads(_tree_path(state_dir).read_text())
        if record["boot_id"] != _boot_id():
            return []
        return [(int(pid), int(start)) for pid, start in record["processes"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []  # the marks remain


def _tree_path(state_dir: Path) -> Path:
    return state_dir / TREE_NAME


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _try_lock(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
