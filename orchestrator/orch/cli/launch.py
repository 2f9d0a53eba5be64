"""Starting and stopping the server of this machine, in a process that may import Ray."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from orch.cli.output import say
from orch.model.errors import NoServer, OrchError, WrongUse

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from orch.cli.connect import Target
    from orch.cli.output import Progress
    from orch.control.home import Home

PROGRAM = "orch.api.bootstrap"
LOG_NAME = "bootstrap.log"
LOG_TAIL_LINES = 10


def start_server(
    target: Target,
    shown: Progress,
    *,
    cpus: int | None = None,
    gpus: int | None = None,
    listen: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Brings the server up; returns what `server.json` says. Harmless where it runs already."""
    from orch.cli.connect import config_of

    config = config_of(target.home)
    arguments: list[str] = []
    if target.kind == "ray":
        arguments += ["--cluster", target.address]
    for option, given, configured in (("--num-cpus", cpus, config.cpus), ("--num-gpus", gpus, config.gpus)):
        amount = configured if given is None else given
        if amount is not None:
            arguments += [option, str(amount)]
    if listen:
        arguments += ["--listen", json.dumps(dict(listen))]
    shown.show("starting the server")
    found: dict[str, Any] = _run("start", arguments, target.home, shown)["ready"]
    return found


def restart_server(home: Home, shown: Progress, *, new_token: bool = False) -> dict[str, Any]:
    """Another controller on the same Ray. NoServer where none runs."""
    shown.show("restarting the server")
    found: dict[str, Any] = _run("restart", ["--new-token"] if new_token else [], home, shown)["ready"]
    return found


def stop_server(home: Home, shown: Progress) -> dict[str, Any]:
    shown.show("stopping the server")
    found: dict[str, Any] = _run("stop", [], home, shown)["stopped"]
    return found


def _run(verb: str, arguments: Sequence[str], home: Home, shown: Progress) -> dict[str, Any]:
    home.ensure()
    log_path = home.root / LOG_NAME
    # -P: a module of the user's folder must not shadow one of ours. A session of its own: what it leaves
    # running must not be ended by the Ctrl-C that ends this command. stderr goes to a file, because the
    # daemons inherit it and a pipe would never end.
    command = [sys.executable, "-P", "-m", PROGRAM, verb, "--home", str(home.root), *arguments]
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            cwd=home.root,
            start_new_session=True,
        )
    assert process.stdout is not None
    try:
        with process.stdout as lines:
            told = _last_word(lines, shown)
            code = process.wait()
    except KeyboardInterrupt:
        shown.close()
        say(f"\norch: interrupted; `orch server {verb}` takes up what was left undone")
        raise
    if "error" in told:
        raise _error(told["error"])
    if told:
        return told
    raise NoServer(f"the server could not be {_done(verb)} (exit code {code}); {_tail(log_path)}")


def _last_word(lines: Iterable[bytes], shown: Progress) -> dict[str, Any]:
    """What it said in the end, its progress shown until then; empty if it ended without a word.

    Nothing is read behind that: daemons may hold the stream open for ever.
    """
    for line in lines:
        told = _read(line)
        if "progress" in told:
            shown.show(str(told["progress"]))
        elif told:
            return told
    return {}


def _done(verb: str) -> str:
    return {"stop": "stopped"}.get(verb, f"{verb}ed")


def _read(line: bytes) -> dict[str, Any]:
    """One JSON line; anything else on that stream is noise of a library."""
    try:
        told = json.loads(line)
    except ValueError:
        return {}
    return told if isinstance(told, dict) else {}


def _error(told: Any) -> OrchError:
    if not isinstance(told, dict):
        return NoServer(str(told))
    kind = WrongUse if told.get("exit_code") == WrongUse.exit_code else NoServer
    return kind(str(told.get("message")))


def _tail(log_path: Path) -> str:
    lines = log_path.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:]
    return f"the end of {log_path}:\n" + "\n".join(lines) if lines else f"{log_path} says nothing"
