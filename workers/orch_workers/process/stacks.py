"""What the processes of a job are doing: their stacks, by py-spy, which needs nothing from them."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

PROCESSES_MAX = 16
DUMP_LIMIT_S = 10.0
TEXT_CHARACTERS_MAX = 64 << 10
_STATE = re.compile(r"^(Thread [^(]*)\([^)]*\)", re.MULTILINE)
STOPPED = {psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP}


@dataclass(frozen=True)
class Stacks:
    """`text` for people. `frames` is what is compared: None when no stack could be read. `stopped`: pids that a signal
    has stopped (SIGSTOP), which is reason enough not to move.
    """

    text: str
    frames: str | None
    stopped: tuple[int, ...] = ()


def read_stacks(pids: Sequence[int]) -> Stacks:
    """Of at most PROCESSES_MAX of these processes; what is not Python is left out. Takes a moment of each."""
    parts: list[str] = []
    frames: list[str] = []
    stopped: list[int] = []
    for pid in list(pids)[:PROCESSES_MAX]:
        try:
            process = psutil.Process(pid)
            status, command = process.status(), " ".join(process.cmdline())[:200]
        except psutil.Error:
            continue
        if status in STOPPED:
            stopped.append(pid)
            parts.append(f"process {pid} ({command}): stopped by a signal, so its stack cannot be read")
            continue
        text, is_stack = _dump(pid)
        if is_stack:
            frames.append(_STATE.sub(r"\1", text))
            parts.append(text)
        elif text:
            parts.append(f"process {pid} ({command}): {text}")
    shown = "\n".join(parts)[:TEXT_CHARACTERS_MAX]
    return Stacks(shown, "\n".join(frames) or None, tuple(stopped))


def _dump(pid: int) -> tuple[str, bool]:
    """A process's stacks, or why there are none; empty for what is not Python."""
    program = _program()
    if program is None:
        return "py-spy is not installed beside orch, so its stack cannot be read", False
    try:
        done = subprocess.run(
            [program, "dump", "--pid", str(pid)],
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=DUMP_LIMIT_S,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"its stack cannot be read: {error}", False
    if done.returncode == 0:
        return done.stdout.strip(), True
    why = (done.stderr.strip().splitlines() or ["py-spy gave no reason"])[0]
    return (
        "" if "python" in why.lower() and "find" in why.lower() else f"its stack cannot be read: {why}"
    ), False


def _program() -> str | None:
    beside = Path(sysconfig.get_path("scripts")) / "py-spy"
    if beside.exists():
        return str(beside)
    return shutil.which("py-spy", path=str(Path(sys.executable).parent)) or shutil.which("py-spy")
