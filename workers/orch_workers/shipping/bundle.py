"""The folder that goes on the training process's PYTHONPATH: the training side of orch and nothing else.

With the agent's site-packages on that path, our dependencies would shadow the user's (DESIGN section 5).
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import tempfile
from pathlib import Path

HOOK_FOLDER = "~start"
"""Goes first on PYTHONPATH where an interpreter shall be recorded or made to wait (standby.py). No name that anybody
can import.
"""
HOOK_PACKAGE = "orch_standby"
ORCH_FILES = ("__init__.py", "huggingface.py", "keras.py", "lightning.py", "tensorflow.py")
"""Of the package that users import, what has a meaning inside a training process."""
FILES_MAX = 1_000
"""More would mean that a wrong folder was taken for our package."""


def ensure(node_root: Path) -> Path:
    """The bundle of this version of orch, made if it is not there: `<node_root>/bundle/<digest>`.

    Safe to call from several processes at once. A folder that does not match its name (a machine that lost
    power while writing it, somebody's edit) is replaced.
    """
    contents = _contents()
    digest = _digest(contents)
    folder = node_root / "bundle"
    target = folder / digest
    if target.is_dir():
        if _digest(_read(target)) == digest:
            return target
        aside = Path(tempfile.mkdtemp(prefix=".damaged-", dir=folder))
        target.rename(aside / "bundle")
        shutil.rmtree(aside)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=folder))
    try:
        for name, content in contents.items():
            path = partial / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        try:
            partial.rename(target)
        except OSError:
            # Somebody else was faster: a folder can only be renamed onto an empty one.
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def _contents() -> dict[str, bytes]:
    """Relative path → content, from the installed packages (found, not imported)."""
    ours = _package_folder("orch_workers")
    contents = {f"orch/{name}": (_package_folder("orch") / name).read_bytes() for name in ORCH_FILES}
    contents["orch_workers/__init__.py"] = (ours / "__init__.py").read_bytes()
    for name, content in _read(ours / "training").items():
        folder, _, file = name.rpartition("/")
        if folder != "standby":
            contents[f"orch_workers/training/{name}"] = content
        elif file == "sitecustomize.py":
            contents[f"{HOOK_FOLDER}/{file}"] = content
        else:
            contents[f"{HOOK_FOLDER}/{HOOK_PACKAGE}/{file}"] = content
    return contents


def _package_folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise RuntimeError(f"the package {package} is not installed where the agent runs")
    return Path(spec.origin).parent


def _read(folder: Path) -> dict[str, bytes]:
    """Every Python source below the folder. Compiled files do not count: the interpreter makes those."""
    paths = sorted(path for path in folder.rglob("*.py") if path.is_file())
    if len(paths) > FILES_MAX:
        raise RuntimeError(f"{folder} holds {len(paths)} Python files; at most {FILES_MAX} are expected")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def _digest(contents: dict[str, bytes]) -> str:
    digest = hashlib.sha256()
    for name in sorted(contents):
        for part in (os.fsencode(name), contents[name]):
            digest.update(len(part).to_bytes(8, "little"))
            digest.update(part)
    return digest.hexdigest()[:32]
