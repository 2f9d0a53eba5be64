"""Kills a training job twice while it works, and shows that its result is that of an undisturbed run.

    python examples/digits/demo.py [local|s3]

Everything happens in a throw-away home folder, with the commands that a person would type. Exit code 0 only
if both runs ended with the same bits.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import queue
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]

EVENT_LIMIT_S = 180.0
"""Nothing heard of the job for so long: the demo gives up."""
AFTER_CHECKPOINT_S = 0.7
"""A kill comes so long after a checkpoint, so that there is something to lose."""
VICTIMS = (("training process", "ProcessStarted"), ("agent", "AgentUp"))
"""Whom to kill, in this order, and the event that carries its pid."""
WORD_CHARS_MAX = 60
"""Longer words of a command are cut where it is shown."""

Document = dict[str, Any]
console = Console(highlight=False, soft_wrap=True)


class DemoError(Exception):
    """What went otherwise than it should, in a sentence."""


@dataclass
class Recovery:
    """One kill and what followed; times are seconds since the epoch."""

    victim: str
    killed_at: float
    restored_step: int = 0
    source: str = ""
    lost_steps: int = 0
    took_s: float = 0.0


class Orch:
    """The `orch` command in a home of its own."""

    def __init__(self, home: Path, env: dict[str, str]) -> None:
        others = {"ORCH_CLUSTER", "ORCH_STORE", "ORCH_URL", "RAY_ADDRESS"}
        self._env = {name: value for name, value in os.environ.items() if name not in others}
        self._env |= {"ORCH_HOME": str(home), "PYTHONUNBUFFERED": "1", **env}

    def __call__(self, *words: str, show: bool = True) -> str:
        """Its stdout; what it says on stderr goes to the person."""
        if show:
            shown = [word if len(word) <= WORD_CHARS_MAX else f"{word[:WORD_CHARS_MAX]}…" for word in words]
            console.print(f"[bold]$ orch {escape(' '.join(shown))}[/]")
        done = subprocess.run(
            self._command(words), env=self._env, stdout=subprocess.PIPE, text=True, check=False
        )
        if done.returncode:
            raise DemoError(f"`orch {' '.join(words)}` ended with exit code {done.returncode}")
        return done.stdout

    @contextlib.contextmanager
    def lines(self, *words: str) -> Iterator[queue.SimpleQueue[str | None]]:
        """Its stdout line by line as it comes, None at the end."""
        process = subprocess.Popen(
            self._command(words), env=self._env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        found: queue.SimpleQueue[str | None] = queue.SimpleQueue()

        def read() -> None:
            assert process.stdout is not None
            for line in process.stdout:
                found.put(line.rstrip("\n"))
            found.put(None)

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        try:
            yield found
        finally:
            process.terminate()
            process.wait()
            reader.join()

    @staticmethod
    def _command(words: tuple[str, ...]) -> list[str]:
        return [sys.executable, "-m", "orch.cli.main", *words]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("storage", nargs="?", default="local", choices=["local", "s3"])
    storage = parser.parse_args().storage
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="orch-demo-")))
        options, env = _s3(folder / "s3", stack) if storage == "s3" else ([], {})
        orch = Orch(folder / "home", env)
        try:
            stack.callback(orch, "server", "stop", show=False)
            return _demo(orch, options, folder)
        except DemoError as error:
            console.print(f"[red]The demo failed:[/] {error}")
            _keep_logs(folder / "home")
            return 1


def _s3(folder: Path, stack: contextlib.ExitStack) -> tuple[list[str], dict[str, str]]:
    """An S3 server on loopback; the options of `orch submit` that use it, and the variables it needs."""
    sys.path.insert(0, str(ROOT / "tests"))
    from support.seaweed import SeaweedFS

    s3 = stack.enter_context(SeaweedFS(folder))
    console.print(f"SeaweedFS, an S3 server, listens on {s3.endpoint}")
    storage = {"url": s3.url("demo"), "options": s3.options}
    secrets = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"]
    options = [f"checkpoint.storage={json.dumps(storage)}", f"secrets={json.dumps(secrets)}"]
    return [word for option in options for word in ("--set", option)], {
        name: s3.env[name] for name in secrets
    }


def _demo(orch: Orch, options: list[str], folder: Path) -> int:
    console.rule("The job, with its training process and its agent killed")
    disturbed = orch("submit", "--quiet", *options, str(HERE / "job.yaml")).strip()
    console.print(disturbed)
    recoveries = _follow(orch, disturbed, VICTIMS)
    orch("wait", disturbed, show=False)
    console.rule("The same job, undisturbed")
    undisturbed = orch(
        "submit", "--quiet", "--name", "digits-undisturbed", *options, str(HERE / "job.yaml")
    ).strip()
    console.print(undisturbed)
    _follow(orch, undisturbed, ())
    orch("wait", undisturbed, show=False)
    console.rule("What came out")
    console.print(orch("status"), end="", markup=False)
    console.print(orch("status", disturbed), end="", markup=False)
    results = [_fetch(orch, job, folder / job) for job in (disturbed, undisturbed)]
    return _judge(recoveries, dict(zip((disturbed, undisturbed), results, strict=True)))


# One job


def _follow(orch: Orch, job: str, victims: tuple[tuple[str, str], ...]) -> list[Recovery]:
    """Shows the job's log and kills each victim when its turn has come, until the job is over."""
    waiting, recoveries = list(victims), []
    pids: dict[str, int] = {}
    with orch.lines("logs", "-f", job) as log, orch.lines("events", "-f", "-o", "json", job) as events:
        shown = threading.Thread(target=_show_log, args=(log,), daemon=True)
        shown.start()
        for event in _parsed(events):
            kind, data = event["type"], event["data"]
            if kind in {"ProcessStarted", "AgentUp"}:
                pids[kind] = data["pid"]
            elif kind == "CheckpointCommitted":
                _say(f"step {data['step']} is in storage")
                if waiting and data["step"] > 1 and not _under_way(recoveries):
                    time.sleep(AFTER_CHECKPOINT_S)
                    victim, started = waiting.pop(0)
                    recoveries.append(_kill(victim, pids[started]))
            elif kind == "Restored" and _under_way(recoveries):
                recoveries[-1].restored_step, recoveries[-1].source = data["step"], data["source"]
            elif kind == "Recovered" and _under_way(recoveries):
                _recovered(recoveries[-1], event)
        shown.join()
    if waiting:
        raise DemoError(f"the job was over before the {waiting[0][0]} could be killed")
    if _under_way(recoveries):
        raise DemoError(f"the job never came back after its {recoveries[-1].victim} was killed")
    return recoveries


def _under_way(recoveries: list[Recovery]) -> bool:
    return bool(recoveries) and not recoveries[-1].took_s


def _parsed(events: queue.SimpleQueue[str | None]) -> Iterator[Document]:
    while True:
        try:
            line = events.get(timeout=EVENT_LIMIT_S)
        except queue.Empty:
            raise DemoError(f"nothing was heard of the job for {EVENT_LIMIT_S:g} s") from None
        if line is None:
            return
        yield json.loads(line)


def _show_log(lines: queue.SimpleQueue[str | None]) -> None:
    while (line := lines.get()) is not None:
        console.print(f"[dim]  | {escape(line)}[/]")


def _kill(victim: str, pid: int) -> Recovery:
    killed_at = time.time()
    os.kill(pid, signal.SIGKILL)
    _say(f"[red]SIGKILL to the {victim}[/] (process {pid})")
    return Recovery(victim, killed_at)


def _recovered(recovery: Recovery, event: Document) -> None:
    seen_at = datetime.fromisoformat(event["time"]).timestamp()
    recovery.took_s = max(seen_at - recovery.killed_at, 1e-3)
    recovery.lost_steps = event["data"]["lost_steps"]
    _say(
        f"[green]recovered[/] from step {recovery.restored_step}, out of {recovery.source}:"
        f" first new step {recovery.took_s:.1f} s after the kill, {recovery.lost_steps} steps done twice"
    )


def _say(text: str) -> None:
    console.print(f"{time.strftime('%H:%M:%S')}  {text}")


# Both together


@dataclass
class Result:
    fingerprint: str
    test_accuracy: float


def _fetch(orch: Orch, job: str, folder: Path) -> Result:
    orch("fetch", job, "--to", str(folder), show=False)
    state = torch.load(folder / "final.pt", weights_only=True)
    digest = hashlib.sha256()
    _feed(digest.update, "", state)
    return Result(digest.hexdigest(), json.loads((folder / "result.json").read_text())["test_accuracy"])


def _feed(update: Any, path: str, value: Any) -> None:
    """Every bit of a state, in one order. The file's own bytes would not do: pickle writes equal texts as one
    or as two, depending on where they came from."""
    if isinstance(value, dict):
        for key in sorted(value, key=lambda key: (type(key).__name__, key)):
            _feed(update, f"{path}/{key!r}", value[key])
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _feed(update, f"{path}/{index}", item)
    elif isinstance(value, torch.Tensor):
        update(f"{path} {value.dtype} {tuple(value.shape)}\0".encode())
        update(value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    elif isinstance(value, float):
        update(path.encode() + struct.pack("<d", value))
    else:
        update(f"{path} {value!r}\0".encode())


def _judge(recoveries: list[Recovery], results: dict[str, Result]) -> int:
    table = Table("killed", "restored step", "from", "lost steps", "recovery")
    for recovery in recoveries:
        numbers = (
            str(recovery.restored_step),
            recovery.source,
            str(recovery.lost_steps),
            f"{recovery.took_s:.2f} s",
        )
        table.add_row(recovery.victim, *numbers)
    console.print(table)
    table = Table("job", "SHA-256 of the final state", "test accuracy")
    for job, result in results.items():
        table.add_row(job, result.fingerprint[:24], f"{result.test_accuracy:.4f}")
    console.print(table)
    problems = [
        f"after the {recovery.victim} was killed the job started over" for recovery in recoveries
        if recovery.restored_step <= 0
    ]  # fmt: skip
    first, second = results.values()
    if first.fingerprint != second.fingerprint:
        problems.append("the final states differ")
    if first.test_accuracy != second.test_accuracy:
        problems.append("the test accuracies differ")
    for problem in problems:
        console.print(f"[red]NOT EQUAL: {problem}[/]")
    if not problems:
        console.print("[green]Killed twice, and equal bit for bit to the run that was left alone.[/]")
    return 1 if problems else 0


def _keep_logs(home: Path) -> None:
    """The throw-away home goes away; what explains a failure stays."""
    kept = Path(tempfile.mkdtemp(prefix="orch-demo-failed-"))
    for source in [*home.glob("*.log"), *home.glob("jobs/*/*/*.log")]:
        shutil.copy(source, kept / "-".join(source.relative_to(home).parts))
    console.print(f"logs are in {kept}")


if __name__ == "__main__":
    sys.exit(main())
