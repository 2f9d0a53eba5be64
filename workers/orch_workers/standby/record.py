"""What a standby is warmed with: the modules that the script imported last time, as training/standby.py recorded them.

The record is the training process's own; nothing in it is trusted to be well formed.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

RECORD_BYTES_MAX = 16 << 20
INSTALLED = ("site-packages", "dist-packages")
NO_FILE = ("built-in", "frozen")


@dataclass(frozen=True)
class Step:
    """One import of the script's; `state` is what the interpreter looked like just before."""

    name: str
    origin: str
    state: dict[str, Any]

    @property
    def third_party(self) -> bool:
        folders = Path(self.origin.removeprefix("namespace ")).parts
        return any(name in folders for name in INSTALLED)


@dataclass
class Record:
    """`steps` in order, the user's own modules left out. `end`: why the record ends early, "" if it does not."""

    steps: list[Step] = field(default_factory=list)
    end: str = ""

    def plan(self, spoilers: dict[str, str]) -> list[Step]:
        """What to warm: up to the last third-party module, and never one of `spoilers`.

        The standard library's modules before it are warmed too, so that everything is imported in the order in
        which it was (functions are called at exit in the reverse of that order).
        """
        good = []
        for step in self.steps:
            if step.name in spoilers:
                break
            good.append(step)
        while good and not good[-1].third_party:
            good.pop()
        return good


def read_record(path: Path) -> Record:
    """What can be read of it: a process that was killed leaves half a line."""
    found = Record()
    states: dict[str, dict[str, Any]] = {}
    origins: dict[str, str] = {}
    for entry in _entries(path):
        match entry:
            case ("import", str(name), dict(state)) if name not in states:
                states[name] = state
            case ("from", str(name), str(origin)):
                origins[name] = origin
            case ("end", str(reason)):
                found.end = reason
    for name, state in states.items():
        if name not in origins:
            break  # it failed, or was under way when the process ended
        if origins[name]:
            found.steps.append(Step(name, origins[name], state))
    return found


def _entries(path: Path) -> list[Any]:
    try:
        if path.stat().st_size > RECORD_BYTES_MAX:
            return []
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return []
    entries = []
    for line in lines:
        try:
            entries.append(ast.literal_eval(line))
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            break
    return entries
