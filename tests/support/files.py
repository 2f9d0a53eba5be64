"""Scripts that write their own checkpoints, run by a worker without Ray, and stopped where a test wants it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
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


HELPER = """
import os, pickle, sys

def wait(name):
    os.mkfifo(name)
    open(name).read()

def once(name):
    if os.path.exists(f"was-{name}"):
        return False
    open(f"was-{name}", "w").close()
    return True

def load(path="state.pkl"):
    if not os.path.exists(path):
        print("starts from nothing", flush=True)
        return 0
    with open(path, "rb") as file:
        at = pickle.load(file)["step"]
    print("goes on from", at, flush=True)
    return at

def save(at, path="state.pkl"):
    with open(path, "wb") as file:
        pickle.dump({"step": at, "ballast": bytes(20000)}, file)

def save_half(at, path="state.pkl"):
    whole = pickle.dumps({"step": at, "ballast": bytes(20000)})
    file = open(path, "wb")
    file.write(whole[: len(whole) // 2])
    file.flush()
    return file
"""
"""What the scripts of these tests have in common; they know nothing of orch."""


def run_script(machine: Machine, script: str, attempt: int = 1, **more: Any) -> Running:
    """A worker whose command is `script`."""
    (machine.workdir / "helper.py").write_text(HELPER)
    (machine.workdir / "script.py").write_text("from helper import *\n" + textwrap.dedent(script))
    return machine.worker(attempt, run="python script.py", **{"files": ("state.pkl",), **more})


def versions(running: Running) -> list[int]:
    """Numbers of the versions in storage, in the order in which they came there."""
    return [event["step"] for event in running.told("CheckpointCommitted")]


def restored(running: Running) -> list[tuple[int, str]]:
    return [(event["step"], event["source"]) for event in running.told("Restored")]


def newest(running: Running) -> int:
    """The number of the newest version on its machine; 0: there is none."""
    keeper = running.worker._keeper
    progress = None if keeper is None else keeper.progress()
    return 0 if progress is None else progress.step
