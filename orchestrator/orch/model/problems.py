"""What is wrong with a file that a person wrote: one problem each, with the place, and all of them at once.

Light on purpose: the client rebuilds problems from the server's answer without loading the job model.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from orch.model.errors import WrongUse

__all__ = [
    "PROBLEMS_MAX",
    "ConfigError",
    "JobFileError",
    "Path",
    "Problem",
    "ProblemsError",
    "format_path",
    "near_match",
    "shown",
]

PROBLEMS_MAX = 50
"""More than this are counted, not listed."""

_SHOWN_CHARS_MAX = 60

Path = tuple[str | int, ...]
"""A place inside a document: keys and list indices from the top."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One reason for refusing a document.

    `path` is text (`checkpoint.every.steps`, `outputs[1]`); `value` is what stands there, cut short;
    `line` counts from 1.
    """

    message: str
    file: str | None = None
    line: int | None = None
    path: str = ""
    value: str | None = None
    allowed: str | None = None
    near: str | None = None

    def __str__(self) -> str:
        text = self.message
        if self.allowed:
            text += f"; allowed: {self.allowed}"
        if self.near:
            near = self.near if self.near.startswith('"') else repr(self.near)
            text += f" (did you mean {near}?)"
        place = f"{self.file}:{self.line}" if self.file and self.line else self.file
        return ": ".join(part for part in (place, self.path, text) if part)

    def at(self, file: str, line: int | None) -> Problem:
        return replace(self, file=file, line=line)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Problem:
        """Unknown keys are dropped: a newer server may say more."""
        return cls(**{name: data[name] for name in cls.__slots__ if name in data})


class ProblemsError(WrongUse):
    """A file that is refused, with every reason."""

    def __init__(self, problems: Iterable[Problem] = ()) -> None:
        self.problems: list[Problem] = list(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems[:PROBLEMS_MAX]) + self._rest())

    def _rest(self) -> str:
        left = len(self.problems) - PROBLEMS_MAX
        return f"\n… and {left} more" if left > 0 else ""

    def __reduce__(self) -> tuple[type[ProblemsError], tuple[list[Problem]]]:
        return type(self), (self.problems,)


class JobFileError(ProblemsError):
    """A job file that is refused. Nothing was started."""


class ConfigError(ProblemsError):
    """A config file that is refused."""


def format_path(path: Path) -> str:
    """`("outputs", 1)` → `outputs[1]`; a key that is no plain word is quoted."""
    text = ""
    for piece in path:
        if isinstance(piece, int):
            text += f"[{piece}]"
            continue
        plain = piece.replace("_", "").replace("-", "").isalnum() and len(piece) <= _SHOWN_CHARS_MAX
        text += ("." if text else "") + (piece if plain else shown(piece))
    return text


def shown(value: object) -> str:
    """A value as part of a sentence, on one line and never long."""
    match value:
        case None:
            return "empty"
        case bool():
            return "true" if value else "false"
        case Mapping():
            return "a mapping"
        case list() | tuple():
            return "a list"
        case str():
            text = repr(value)
        case _:
            text = str(value)
    if len(text) <= _SHOWN_CHARS_MAX:
        return text
    quote = text[0] if isinstance(value, str) else ""
    return text[: _SHOWN_CHARS_MAX - 1] + "…" + quote


def shown_path(path: str) -> str:
    """Likewise, but a long one keeps its end: there it differs from others."""
    return shown(path if len(path) < _SHOWN_CHARS_MAX - 2 else "…" + path[3 - _SHOWN_CHARS_MAX :])


def near_match(word: str, known: Sequence[str]) -> str | None:
    """The known word that a typing mistake would turn into this one."""
    # difflib is quadratic in the length of a word, and nobody mistypes 100 characters.
    if len(word) > 100:
        return None
    by_fold = {name.lower().replace("-", "_"): name for name in known}
    folded = word.lower().replace("-", "_")
    # One letter of two or three makes a small ratio: `s4` is half of `s3`.
    cutoff = 0.5 if len(word) <= 3 else 0.6
    found = difflib.get_close_matches(folded, by_fold, n=1, cutoff=cutoff)
    return by_fold[found[0]] if found else None
