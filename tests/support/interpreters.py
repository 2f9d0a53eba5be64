"""Interpreters of this machine, of the versions that the training side is for."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

MINORS = range(8, 14)
"""Python 3.8 to 3.13."""
ASK_LIMIT_S = 30.0


def found() -> dict[str, Path]:
    """Version ("3.8") → an interpreter of it that runs, oldest first: of the system, of PATH, and pyenv's."""
    versions = {}
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    for minor in MINORS:
        name = f"python3.{minor}"
        named = [Path("/usr/bin") / name, *sorted(pyenv.glob(f"3.{minor}.*/bin/{name}"))]
        on_path = shutil.which(name)
        runs = [path for path in [*named, *([Path(on_path)] if on_path else [])] if _runs(path, minor)]
        if runs:
            versions[f"3.{minor}"] = runs[0]
    return versions


def _runs(path: Path, minor: int) -> bool:
    code = "import sys, json, ctypes, ssl; print(*sys.version_info[:2])"
    try:
        done = subprocess.run(
            [path, "-I", "-c", code], capture_output=True, text=True, timeout=ASK_LIMIT_S, check=False
        )
    except OSError:
        return False
    return done.stdout.split() == ["3", str(minor)]
