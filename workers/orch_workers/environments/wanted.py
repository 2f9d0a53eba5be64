"""What a job asks for: its requirements with all that they name, and the key of the environment that has them."""

from __future__ import annotations

import hashlib
import json
import platform
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from orch_workers.environments.pip_settings import Settings
from orch_workers.errors import UnbuildableError

FILES_MAX = 100
FILE_BYTES_MAX = 4 << 20
KEY_CHARS = 24
_INCLUDES = re.compile(r"(?:-r|-c|--requirements?|--constraints?)(?:\s+|=|(?<=-r)|(?<=-c))(\S.*)")
_EDITABLE = re.compile(r"(?:-e|--editable)\b")
_LOCAL = re.compile(r"\.{0,2}/|\.\.?$|file:|[^\s;@]+\.(?:whl|tar\.gz|zip)\b|[^@#]+@\s*(?:file:|\.{0,2}/)")
_UV_TABLE = b"[tool.uv"
FORMAT = 1
"""Of how environments are built: a change here makes all of them anew."""


@dataclass(frozen=True)
class Wanted:
    """`files`: relative path → content of all that decides. `local`: something of the workdir itself is installed."""

    requirements: str | None = None
    version: str | None = None
    files: dict[str, bytes] = field(default_factory=dict)
    local: bool = False

    def key(self, interpreter: str, settings: Settings, code_digest: str | None) -> str:
        """Of the environment on this kind of machine. `interpreter`: implementation and full version."""
        document = {
            "format": FORMAT,
            "interpreter": interpreter,
            "machine": [platform.machine(), *platform.libc_ver()],
            "files": {name: hashlib.sha256(content).hexdigest() for name, content in self.files.items()},
            "settings": settings.identity,
            "code": code_digest if self.local else None,
        }
        written = json.dumps(document, sort_keys=True).encode()
        return hashlib.sha256(written).hexdigest()[:KEY_CHARS]

    def describe(self) -> str:
        """As in "the Python environment of …"."""
        named = [self.requirements] if self.requirements else []
        return " and ".join([*named, *([f"version {self.version}"] if self.version else [])])


def wanted(python: Mapping[str, str | None], folder: Path, *, shipped: bool) -> Wanted:
    """`python` as in the job file, `folder` the workdir as it was submitted. Raises UnbuildableError."""
    name, version = python.get("requirements"), python.get("version")
    if name is None:
        return Wanted(version=version)
    reader = _Reader(folder)
    reader.read(name)
    if reader.local and not shipped:
        raise UnbuildableError(
            f"{name} names something inside the workdir ({reader.local}), which can change under a workdir that is not "
            "shipped: install it where it is, or leave `ship: never` out"
        )
    for beside in ("uv.toml", "pyproject.toml"):
        path = folder / beside
        if path.is_file() and (beside == "uv.toml" or _UV_TABLE in path.read_bytes()):
            reader.files.setdefault(beside, path.read_bytes())
    return Wanted(name, version, reader.files, bool(reader.local))


class _Reader:
    """A requirements file and those it includes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.files: dict[str, bytes] = {}
        self.local = ""
        """The first line that installs something of the workdir."""

    def read(self, name: str, named_in: str = "python.requirements") -> None:
        if name in self.files:
            return
        path = self._folder / name
        if not path.resolve().is_relative_to(self._folder.resolve()):
            raise UnbuildableError(f"{named_in} names {name}, which is not inside the workdir")
        try:
            content = path.read_bytes()
        except OSError as error:
            raise UnbuildableError(
                f"{named_in} names {name}, which cannot be read in the workdir ({error.strerror}); is it left out by "
                ".gitignore or .orchignore?"
            ) from error
        if len(content) > FILE_BYTES_MAX or len(self.files) >= FILES_MAX:
            raise UnbuildableError(
                f"{name}: more than {FILES_MAX} requirements files, or one over {FILE_BYTES_MAX} bytes"
            )
        self.files[name] = content
        if path.suffix != ".toml":
            for line in content.decode(errors="replace").replace("\\\n", " ").splitlines():
                self._line(line.strip(), name)

    def _line(self, line: str, name: str) -> None:
        line = re.sub(r"(^|\s+)#.*$", "", line)
        if included := _INCLUDES.match(line):
            target = " ".join(shlex.split(included[1]))
            if "://" not in target:
                self.read(str(PurePosixPath(name).parent / target), name)
        elif _EDITABLE.match(line):
            raise UnbuildableError(
                f"{name}: `{line}` would tie an environment that jobs share to this job's folder; write the path "
                "without -e, or PYTHONPATH under `env`"
            )
        elif _LOCAL.match(line):
            self.local = self.local or line
