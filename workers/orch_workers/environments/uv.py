"""Runs uv under a guard, as the job's own command runs: whatever happens to the agent, nothing of it is left."""

from __future__ import annotations

import os
import re
import shutil
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from orch_workers.errors import UnbuildableError
from orch_workers.process.guarded import Event, Exited, GuardedProcess, wait_predecessor

RUN_LIMIT_S = 2 * 3600.0
"""One call of uv; packages that are built from source may take most of an hour."""
PREDECESSOR_LIMIT_S = 60.0
KILL_LIMIT_S = 30.0
POLL_S = 0.05
TAIL_LINES = 20
ANSWER_LINES = 5000
TAIL_BYTES = 256 << 10
PYENV = ".pyenv"
_KEPT = frozenset(
    """
    HOME USER LANG TZ TMPDIR PATH LD_LIBRARY_PATH CC CXX CFLAGS CXXFLAGS LDFLAGS CUDA_HOME NETRC SSL_CERT_FILE
    SSL_CERT_DIR REQUESTS_CA_BUNDLE XDG_CONFIG_HOME XDG_CONFIG_DIRS PYENV_ROOT
    """.split()  # noqa: SIM905, a list of words reads better than a column of strings
)
_KEPT_BEGINNINGS = ("PIP_", "UV_", "GIT_")
_PROXIES = re.compile(r"(?:https?|all|no)_proxy", re.IGNORECASE)
_FOREIGN = (
    "VIRTUAL_ENV",
    "CONDA_PREFIX",
    "PYTHONPATH",
    "PYTHONHOME",
    "UV_PROJECT_ENVIRONMENT",
    "UV_SYSTEM_PYTHON",
)
"""What would lead uv, or a package that it builds, to another environment."""


@dataclass(frozen=True)
class Ended:
    code: int
    tail: str
    """The last lines of what it said."""


def base_environment(machine: Mapping[str, str], job: Mapping[str, str]) -> dict[str, str]:
    """For uv: what the machine says of networks, compilers and indexes, then what the job's `env` and `secrets` say."""
    kept = {
        name: value
        for name, value in machine.items()
        if name in _KEPT or name.startswith(_KEPT_BEGINNINGS) or _PROXIES.fullmatch(name)
    }
    found = {**kept, **job}
    for name in _FOREIGN:
        found.pop(name, None)
    if found.get("UV_LINK_MODE") == "symlink":
        del found[
            "UV_LINK_MODE"
        ]  # environments would lose their files with uv's cache, which is removed for room
    found["PATH"] = os.pathsep.join([found.get("PATH", os.defpath), *_pyenv(found)])
    return {"NO_COLOR": "1", **found}


def _pyenv(environment: Mapping[str, str]) -> list[str]:
    """Those of pyenv stand behind shims that refuse all but the chosen one."""
    root = Path(environment.get("PYENV_ROOT") or Path(environment.get("HOME", "/")) / PYENV)
    return [str(path) for path in sorted((root / "versions").glob("3.*/bin"), reverse=True)]


class Uv:
    """`place` is a state folder for guards, `log_path` the job's log. One call at a time."""

    def __init__(
        self, environment: Mapping[str, str], place: Path, log_path: Path, stopping: threading.Event
    ) -> None:
        self._environment, self._place, self._log_path = dict(environment), place, log_path
        self._stopping = stopping
        self._program = _program()

    def with_variables(self, more: Mapping[str, str]) -> Uv:
        return Uv({**self._environment, **more}, self._place, self._log_path, self._stopping)

    def say(self, *arguments: str | Path, cwd: Path) -> Ended:
        """Runs it, its output into the job's log. Raises InterruptedError when told to stop."""
        return self._run(arguments, cwd, self._log_path, TAIL_LINES)

    def ask(self, *arguments: str | Path, cwd: Path) -> Ended:
        """Runs it; its output is the answer."""
        answer = self._place / "answer"
        self._place.mkdir(mode=0o700, parents=True, exist_ok=True)
        answer.unlink(missing_ok=True)
        return self._run(arguments, cwd, answer, ANSWER_LINES)

    def _run(self, arguments: Sequence[str | Path], cwd: Path, output: Path, lines_max: int) -> Ended:
        wait_predecessor(self._place, PREDECESSOR_LIMIT_S)
        began_at = output.stat().st_size if output.exists() else 0
        codes: list[int] = []

        def on_event(event: Event) -> None:
            if isinstance(event, Exited):
                codes.append(event.code if event.code is not None else 128 + (event.signal or 0))

        process = GuardedProcess.start(
            [self._program, *map(str, arguments)],
            env=self._environment,
            cwd=cwd,
            log_path=output,
            state_dir=self._place,
            on_event=on_event,
        )
        waited_s = 0.0
        while not process.wait_gone(POLL_S):
            waited_s += POLL_S
            if self._stopping.is_set() or waited_s > RUN_LIMIT_S:
                process.kill()
                process.wait_gone(KILL_LIMIT_S)
                if self._stopping.is_set():
                    raise InterruptedError("stopped while its Python environment was being built")
                return Ended(128 + 9, f"killed after {RUN_LIMIT_S:.0f} s")
        return Ended(codes[0] if codes else 128 + 9, _tail(output, began_at, lines_max))


def _program() -> str:
    """The one that orch brought along, else one of the machine."""
    beside = Path(sys.executable).with_name("uv")
    try:
        import uv
    except ImportError:
        found = str(beside) if beside.is_file() else shutil.which("uv")
    else:
        found = uv.find_uv_bin()
    if not found:
        raise UnbuildableError(
            "there is no uv on this machine, and it builds Python environments: install it where orch is installed",
            outcome="blocked",
        )
    return found


def _tail(path: Path, since: int, lines_max: int) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(since, path.stat().st_size - TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    return "\n".join(text.rstrip().splitlines()[-lines_max:])
