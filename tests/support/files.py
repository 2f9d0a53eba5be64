"""Scripts that write their own checkpoints, run by a worker without Ray, and stopped where a test wants it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from support.server import wait_for

if TYPE_CHECKING:
    from support.workers import Machine, Running

LIMIT_S = 120.0
"""Starts of a framework on a busy machine."""
EXAMPLES = Path(__file__).parents[2] / "examples"


def example(machine: Machine, name: str) -> str:
    """Puts an example's files into the machine's working folder; the command of its job file."""
    import yaml

    folder = EXAMPLES / name
    for path in folder.iterdir():
        if path.is_file():
            shutil.copy(path, machine.workdir)
    return str(yaml.safe_load((folder / "job.yaml").read_text())["run"])


def undisturbed(folder: Path, script: Path, *arguments: str) -> Path:
    """Runs a script by hand, from beginning to end, in a folder of its own; returns that."""
    folder.mkdir()
    shutil.copy(script, folder)
    subprocess.run(
        [sys.executable, script.name, *arguments],
        cwd=folder,
        check=True,
        capture_output=True,
        timeout=120,
    )
    return folder


def kill(running: Running, number: int = signal.SIGKILL) -> None:
    """The training process, and what runs in it."""
    os.kill(running.told("ProcessStarted")[-1]["pid"], number)


def starts(running: Running) -> int:
    return len(running.told("ProcessStarted"))


def wait_version(running: Running, number: int) -> dict[str, Any]:
    """Until that version is in storage."""

    def there() -> Any:
        return next((one for one in running.told("CheckpointCommitted") if one["step"] == number), None)

    found: dict[str, Any] = wait_for(f"version {number} is in storage", there, LIMIT_S)
    return found


def log_of(running: Running) -> str:
    try:
        return running.paths.log.read_text()
    except FileNotFoundError:
        return ""


def wait_log(running: Running, text: str, count: int = 1) -> str:
    found: str = wait_for(
        f"{count} of {text!r} in the log",
        lambda: log_of(running).count(text) >= count and log_of(running),
        LIMIT_S,
    )
    return found
