"""YAML for files that people write, read strictly: what could surprise is refused, with its line.

Built on PyYAML's event stream, iteratively: no constructor runs, nesting cannot overflow the stack and an
alias cannot expand. Refused: duplicate keys, anchors, aliases, merge keys, tags, several documents, tabs as
indentation, text that is not UTF-8. Plain scalars follow the core schema of YAML 1.2 (yaml.org/spec/1.2.2,
section 10.3.2): `no`, `on`, `1:30` and dates are text. A number with a leading zero is text as well, because
YAML 1.1 reads it as octal and YAML 1.2 does not.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn

import yaml

from orch.model.problems import Path, Problem, format_path, shown

__all__ = ["DEPTH_MAX", "NODES_MAX", "SIZE_BYTES_MAX", "Document", "Place", "parse_yaml"]

SIZE_BYTES_MAX = 1 << 20
DEPTH_MAX = 32
NODES_MAX = 20_000
"""Together with the size, this bounds the time that a hostile file can take."""

_INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9]{0,63})")
_BASED_INTEGER = re.compile(r"0o[0-7]{1,64}|0x[0-9a-fA-F]{1,64}")
_FLOAT = re.compile(
    r"[-+]?(?:\.[0-9]{1,64}|(?:0|[1-9][0-9]{0,63})(?:\.[0-9]{0,64})?)(?:[eE][-+]?[0-9]{1,9})?"
)
_SPECIAL: dict[str, bool | float | None] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), float("nan")),
    **{sign + word: float(sign + "inf") for word in (".inf", ".Inf", ".INF") for sign in ("", "+", "-")},
}


@dataclass(frozen=True, slots=True)
class Place:
    """Where a value was written: a file and its line (from 1), or an option without one."""

    file: str
    line: int | None = None

    def __str__(self) -> str:
        return f"{self.file} line {self.line}" if self.line else self.file


@dataclass
class Document:
    """What was read: plain Python values, the place of every path, and the text of every unquoted scalar
    that is not text already (`1.10` is the number 1.1, but its text is at hand).

    `readable` is False when there is no telling what the file says: `problems` say why, `data` is None.
    """

    file: str
    data: Any = None
    places: dict[Path, Place] = field(default_factory=dict)
    texts: dict[Path, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    refused: set[Path] = field(default_factory=set)
    """Paths that a problem names already: nothing else needs to be said about what stands there."""
    readable: bool = True

    def place(self, path: Path) -> Place:
        """Of the value, or of the nearest thing around it."""
        for length in range(len(path), 0, -1):
            if found := self.places.get(path[:length]):
                return found
        return self.places.get((), Place(self.file, 1))

    def has_refused(self, path: Path) -> bool:
        return any(path[:length] in self.refused for length in range(len(path) + 1))

    def refuse(self, message: str, line: int | None, path: Path | None = None, **more: str | None) -> None:
        text = format_path(path) if path else ""
        self.problems.append(Problem(message, file=self.file, line=line, path=text, **more))
        if path:
            self.refused.add(path)


class _UnreadableError(Exception):
    """Reading stops here; the problem is noted."""


def parse_yaml(source: bytes, file: str) -> Document:
    """Reads one document. Never raises: everything that is wrong stands in the document's `problems`."""
    document = Document(file)
    try:
        text = _decode(source, document)
        _Builder(document).run(text)
    except _UnreadableError:
        document.readable, document.data = False, None
    return document


def _decode(source: bytes, document: Document) -> str:
    if len(source) > SIZE_BYTES_MAX:
        document.refuse("is larger than 1 MiB, the most that is read", None)
        raise _UnreadableError
    try:
        return source.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        document.refuse(
            "is not UTF-8 text from here on: save it as UTF-8", source.count(b"\n", 0, error.start) + 1
        )
        raise _UnreadableError from None


_NO_KEY: Final = object()
_BAD_KEY: Final = object()


@dataclass(slots=True)
class _Frame:
    """An open mapping or list. Without a path, it stands where nothing is kept (below a refused key)."""

    container: dict[str, Any] | list[Any]
    path: Path | None
    key: Any = _NO_KEY
    key_line: int = 0
    is_key: bool = False


class _Builder:
    def __init__(self, document: Document) -> None:
        self.document = document
        self.frames: list[_Frame] = []
        self.nodes = 0
        self.documents = 0

    def run(self, text: str) -> None:
        try:
            loader = yaml.SafeLoader(text)
        except yaml.reader.ReaderError as error:
            line = text.count("\n", 0, error.position) + 1
            self._stop(f"has a character that YAML does not allow ({error.character:#x})", line)
        try:
            while loader.check_event():
                self._take(loader.get_event())  # type: ignore[no-untyped-call]
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            self._stop(_syntax_message(error, text), mark.line + 1 if mark else None)
        except (ValueError, OverflowError):
            # PyYAML lets chr() and int() raise for escapes and directives that are out of range.
            self._stop("has an escape or a directive that is out of range", loader.get_mark().line + 1)
        finally:
            loader.dispose()

    def _stop(self, message: str, line: int | None) -> NoReturn:
        self.document.refuse(message, line)
        raise _UnreadableError

    def _take(self, event: yaml.Event) -> None:
        if isinstance(event, yaml.DocumentStartEvent):
            self.documents += 1
            if self.documents > 1:
                self._stop("begins a second document: one file is one document", _line(event))
        elif isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
            if self.frames.pop().is_key:
                self.frames[-1].key = _BAD_KEY
        elif isinstance(event, yaml.NodeEvent):
            self._take_node(event)

    def _take_node(self, event: yaml.NodeEvent) -> None:
        line = _line(event)
        self.nodes += 1
        if self.nodes > NODES_MAX:
            self._stop(f"holds more than {NODES_MAX} values", line)
        frame = self.frames[-1] if self.frames else None
        if frame is not None and isinstance(frame.container, dict) and frame.key is _NO_KEY:
            self._take_key(frame, event, line)
            return
        path = self._path_of_next(frame)
        if path is not None:
            self.document.places[path] = Place(
                self.document.file, frame.key_line if frame and frame.key_line else line
            )
        value = self._value(event, path, line)
        if frame is None:
            self.document.data = value
        elif isinstance(frame.container, list):
            frame.container.append(value)
        else:
            if path is not None:
                frame.container[frame.key] = value
            frame.key = _NO_KEY
        if isinstance(value, dict | list):
            self._open(_Frame(value, path), line)

    @staticmethod
    def _path_of_next(frame: _Frame | None) -> Path | None:
        if frame is None:
            return ()
        if frame.path is None or frame.key is _BAD_KEY:
            return None
        return (*frame.path, len(frame.container) if isinstance(frame.container, list) else frame.key)

    def _open(self, frame: _Frame, line: int) -> None:
        if len(self.frames) == DEPTH_MAX:
            self._stop(f"is nested more than {DEPTH_MAX} levels deep", line)
        self.frames.append(frame)

    def _take_key(self, frame: _Frame, event: yaml.NodeEvent, line: int) -> None:
        frame.key, frame.key_line = _BAD_KEY, line
        if not isinstance(event, yaml.ScalarEvent):
            self.document.refuse("a key must be plain text", line, frame.path)
            self._value(event, None, line)
            if isinstance(event, yaml.MappingStartEvent | yaml.SequenceStartEvent):
                frame.key = _NO_KEY
                self._open(_Frame([], None, is_key=True), line)
                if isinstance(event, yaml.MappingStartEvent):
                    self.frames[-1].container = {}
            return
        self._check_decorations(event, frame.path, line)
        key = event.value
        if frame.path is None:
            return
        here = (*frame.path, key)
        if key == "<<" and event.implicit[0]:
            self.document.refuse("merge keys are not read: write the values out", line, here)
        elif not key or not _is_clean(key):
            self.document.refuse(f"{shown(key)} cannot be a key", line, frame.path)
        elif key in frame.container:
            first = self.document.places[here].line
            self.document.refuse(
                f"the key {shown(key)} stands here twice (first on line {first})", line, here
            )
        else:
            frame.key = key

    def _value(self, event: yaml.NodeEvent, path: Path | None, line: int) -> Any:
        self._check_decorations(event, path, line)
        if isinstance(event, yaml.MappingStartEvent):
            return {}
        if isinstance(event, yaml.SequenceStartEvent):
            return []
        if not isinstance(event, yaml.ScalarEvent):
            return None
        if not _is_clean(event.value):
            self.document.refuse(
                "holds a character that no text may hold (NUL or half a surrogate pair)", line, path
            )
            return None
        if not event.implicit[0]:
            return event.value
        value = _plain_scalar(event.value)
        if path is not None and not isinstance(value, str):
            self.document.texts[path] = event.value
        return value

    def _check_decorations(self, event: yaml.NodeEvent, path: Path | None, line: int) -> None:
        if isinstance(event, yaml.AliasEvent):
            self.document.refuse(
                f"the alias *{shown(event.anchor)[1:-1]} is not read: write the value out", line, path
            )
        elif event.anchor is not None:
            self.document.refuse(
                f"the anchor &{shown(event.anchor)[1:-1]} is not read: remove it", line, path
            )
        elif (tag := getattr(event, "tag", None)) is not None:
            self.document.refuse(f"the tag {shown(tag)} is not read: remove it", line, path)


def _line(event: yaml.Event) -> int:
    return event.start_mark.line + 1 if event.start_mark else 1


def _is_clean(text: str) -> bool:
    return "\0" not in text and not any("\ud800" <= character <= "\udfff" for character in text)


def _plain_scalar(text: str) -> str | int | float | bool | None:
    if text in _SPECIAL:
        return _SPECIAL[text]
    if _INTEGER.fullmatch(text):
        return int(text)
    if _BASED_INTEGER.fullmatch(text):
        return int(text, 0)
    if _FLOAT.fullmatch(text):
        return float(text)
    return text


def _syntax_message(error: yaml.MarkedYAMLError, text: str) -> str:
    problem = error.problem or "cannot be read"
    mark = error.problem_mark
    if mark is not None:
        lines = text.splitlines()
        line = lines[mark.line] if mark.line < len(lines) else ""
        if "\\t" in problem or "\t" in line[: len(line) - len(line.lstrip())]:
            return "a tab stands here: YAML is indented with spaces"
    hint = " (a value with ': ' inside must be quoted)" if "mapping values are not allowed" in problem else ""
    context = f" {error.context}" if error.context else ""
    return f"is not valid YAML: {problem}{context}{hint}"
