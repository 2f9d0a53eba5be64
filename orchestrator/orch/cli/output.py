"""What reaches the person: results on stdout, everything else on stderr.

Colours and animation only where the stream is a terminal, whatever the environment says: output in a pipe or
a file is the same bytes everywhere. rich is imported at the first use: `-o json` never pays for it.
"""

from __future__ import annotations

import contextlib
import enum
import json
import os
import sys
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console
    from rich.status import Status

VERSION = 1
"""Of the JSON documents that `-o json` prints."""

_PIPE_COLUMNS = 1000
"""Nothing is folded or cut for a reader that is no terminal."""


class Format(enum.StrEnum):
    TABLE = "table"
    JSON = "json"


def write_json(document: dict[str, Any]) -> None:
    """One document, indented for the person who looks at it."""
    sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def write_json_line(document: dict[str, Any]) -> None:
    """One of many documents, for a reader that takes them line by line."""
    sys.stdout.write(json.dumps(document, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def write_line(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def write_bytes(data: bytes) -> None:
    """Bytes of a log, as they are: a log may hold anything."""
    sys.stdout.flush()
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def say(text: str) -> None:
    """A sentence to the person, beside the result."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def is_terminal(stream: TextIO) -> bool:
    try:
        return stream.isatty() and os.environ.get("TERM") != "dumb"
    except ValueError:  # closed
        return False


def console(stream: TextIO | None = None) -> Console:
    """A rich console that takes no text for markup."""
    from rich.console import Console

    target: TextIO = sys.stdout if stream is None else stream
    terminal = is_terminal(target)
    return Console(
        file=target,
        force_terminal=terminal,
        color_system="auto" if terminal else None,
        width=None if terminal else _PIPE_COLUMNS,
        markup=False,
        highlight=False,
        emoji=False,
        soft_wrap=not terminal,
    )


class Progress:
    """What is going on, on stderr: one line that changes on a terminal, else a line each."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._status: Status | None = None
        self._last = ""

    def show(self, text: str) -> None:
        if self._quiet or text == self._last:
            return
        self._last = text
        if not is_terminal(sys.stderr):
            say(f"{text} …")
        elif self._status is None:
            self._status = console(sys.stderr).status(f"{text} …")
            self._status.start()
        else:
            self._status.update(f"{text} …")

    def measure(self, text: str, share: float) -> None:
        """How far something has come: only where the line can change."""
        if is_terminal(sys.stderr):
            self.show(f"{text} {share:.0%}")

    def close(self) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None


@contextlib.contextmanager
def progress(*, quiet: bool = False) -> Iterator[Progress]:
    shown = Progress(quiet=quiet)
    try:
        yield shown
    finally:
        shown.close()
