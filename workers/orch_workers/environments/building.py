"""Builds an environment: an interpreter, a virtual environment of it, and the requirements in that."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from orch_workers.environments.uv import Ended, Uv
from orch_workers.environments.wanted import Wanted
from orch_workers.errors import UnbuildableError

RETRY_FIRST_S, RETRY_LAST_S = 5.0, 60.0
RETRY_S_MAX = 1800.0
"""How long an index that cannot be reached is asked again."""
ASK_LIMIT_S = 30.0
LAST_LINE_CHARS = 300
# What uv (reqwest) says of a network, and not of a request that was wrong.
_NETWORK = re.compile(
    r"error sending request|timed? ?out|connection (?:reset|refused|closed|error)|dns error|failed to lookup"
    r"|temporary failure|tcp connect|server error \(5\d\d|broken pipe|unexpected eof|network is unreachable"
    r"|error decoding response body",
    re.IGNORECASE,
)
_MACHINE = re.compile(r"No space left on device|Disk quota exceeded|Permission denied|Read-only file system")


class Builder:
    """One environment for one job. `note` tells a person, `tell` writes a line into the job's log."""

    def __init__(
        self,
        uv: Uv,
        wanted: Wanted,
        *,
        options: tuple[str, ...],
        source: Path,
        workdir: Path,
        note: Callable[[str], None],
        tell: Callable[[str], None],
        stopping: threading.Event,
    ) -> None:
        """`options`: of `uv pip install`; `source`: the workdir as it was submitted; `workdir`: where the job runs."""
        self._uv, self._wanted, self._options = uv, wanted, options
        self._source, self._workdir = source, workdir
        self._note, self._tell, self._stopping = note, tell, stopping

    def interpreter(self) -> tuple[Path, str]:
        """Path and full version ("cpython 3.11.7"); without a wish the one that orch runs in."""
        version = self._wanted.version
        if version is None:
            name = f"{sys.implementation.name} {platform.python_version()}"
            return Path(sys.executable), name
        path = self._find(version)
        if path is None:
            self._tell(f"Python {version} is not on this machine; uv fetches it")
            self._persist(("python", "install", version), f"Python {version} is not on this machine, and")
            path = self._find(version)
        if path is None:
            raise UnbuildableError(f"Python {version} is not to be found on this machine", outcome="blocked")
        return path, _what_is(path)

    def _find(self, version: str) -> Path | None:
        found = self._uv.ask(
            "python", "find", "--system", "--no-project", "--no-python-downloads", version, cwd=self._workdir
        )
        named = [Path(line) for line in found.tail.splitlines() if os.access(line, os.X_OK)]
        return named[-1] if found.code == 0 and named else None

    def build(self, interpreter: Path, name: str, folder: Path) -> dict[str, Any]:
        """Makes it in `folder`; returns what is written down about it."""
        began_s, what = time.monotonic(), self._wanted.describe()
        self._note(f"the Python environment of {what} is being built; its log shows how far that is")
        self._tell(f"building the Python environment of {what} ({name}) in {folder}")
        cannot = f"the Python environment of {what} cannot be built:"
        self._persist(("venv", "--quiet", "--no-project", "--python", interpreter, folder), cannot)
        python = folder / "bin/python"
        if self._wanted.requirements is not None:
            path = self._source / self._wanted.requirements
            self._persist(("pip", "install", "--python", python, *self._options, "-r", path), cannot)
        listed = self._uv.ask("pip", "freeze", "--quiet", "--python", python, cwd=self._workdir)
        seconds_s = round(time.monotonic() - began_s, 1)
        self._tell(f"the Python environment is built, in {seconds_s} s")
        return {
            "requirements": self._wanted.requirements,
            "interpreter": name,
            "packages": listed.tail.splitlines(),
            "seconds_s": seconds_s,
        }

    def _persist(self, arguments: tuple[str | Path, ...], cannot: str) -> None:
        """Until it works, is wrong, or the index has been out of reach for too long."""
        began_s, pause_s = time.monotonic(), RETRY_FIRST_S
        while True:
            ended = self._uv.say(*arguments, cwd=self._workdir)
            if ended.code == 0:
                return
            waited_s = time.monotonic() - began_s
            if not _NETWORK.search(ended.tail) or waited_s > RETRY_S_MAX:
                raise _unbuildable(ended, cannot)
            self._note(f"{cannot} {_last_line(ended)}; tried again in {pause_s:.0f} s")
            if self._stopping.wait(pause_s):
                raise InterruptedError("stopped while its Python environment was being built")
            pause_s = min(2 * pause_s, RETRY_LAST_S)


def _unbuildable(ended: Ended, cannot: str) -> UnbuildableError:
    machine = _NETWORK.search(ended.tail) or _MACHINE.search(ended.tail)
    said = f"{cannot} uv ended with code {ended.code}: {_last_line(ended)}"
    return UnbuildableError(said, outcome="blocked" if machine else "failed", tail=ended.tail)


def _last_line(ended: Ended) -> str:
    """From where uv begins to say what was wrong, in one line; what stands behind that are its hints."""
    lines = [line.strip(" ×╰─▶") for line in ended.tail.splitlines() if line.strip()]
    begins = [
        number for number, line in enumerate(lines) if line.startswith(("error:", "No solution", "Failed to"))
    ]
    words = " ".join(lines[begins[0] :] if begins else lines[-1:]) or "it said nothing"
    return words[:LAST_LINE_CHARS] + ("…" if len(words) > LAST_LINE_CHARS else "")


def _what_is(interpreter: Path) -> str:
    code = "import sys, platform; print(sys.implementation.name, platform.python_version())"
    try:
        done = subprocess.run(
            [interpreter, "-I", "-c", code], capture_output=True, text=True, timeout=ASK_LIMIT_S, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise UnbuildableError(
            f"{interpreter} does not say what it is: {error}", outcome="blocked"
        ) from error
    return done.stdout.strip()
