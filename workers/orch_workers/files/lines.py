"""Metrics of a script that only prints them: numbers in the lines of its log, found by the job's own expressions."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

READ_BYTES_MAX = 1 << 20
"""Read at a time; of a log that grows faster the oldest part of what is new is left out."""
LINE_CHARS_MAX = 2000
"""Of each line; expressions can take long on long ones."""


class LineMetrics:
    """Follows one log file. Used by one thread."""

    def __init__(self, path: Path, expressions: Mapping[str, str]) -> None:
        self._path = path
        self._expressions = {name: re.compile(text) for name, text in expressions.items()}
        self._at = 0
        self._rest = b""
        self.values: dict[str, Any] = {}
        """The newest of each, since `begin`."""
        self.matches = 0
        """Lines with a number in them, since `begin`."""

    def begin(self) -> None:
        """What is written from now on counts."""
        self._at, self._rest, self.values, self.matches = self._size(), b"", {}, 0

    def read(self) -> dict[str, Any]:
        """What is new, the newest of each name; {} when there is nothing. What is no finite number is told as text."""
        if not self._expressions:
            return {}
        size = self._size()
        if size <= self._at:
            return {}
        self._at = max(self._at, size - READ_BYTES_MAX)
        try:
            with self._path.open("rb") as file:
                file.seek(self._at)
                data = file.read(size - self._at)
        except OSError:
            return {}
        self._at += len(data)
        # Progress bars go back to the beginning of their line.
        *lines, self._rest = re.split(rb"[\r\n]", self._rest + data)
        self._rest = self._rest[-LINE_CHARS_MAX:]
        found: dict[str, Any] = {}
        for line in lines:
            values = self._numbers_in(line[:LINE_CHARS_MAX].decode(errors="replace"))
            self.matches += bool(values)
            found.update(values)
        self.values.update(found)
        return found

    def _numbers_in(self, line: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, expression in self._expressions.items():
            match = expression.search(line)
            if match is None or match[1] is None:
                continue
            try:
                number = float(match[1])
            except ValueError:
                continue
            found[name] = number if math.isfinite(number) else str(number)
        return found

    def _size(self) -> int:
        try:
            return self._path.stat().st_size
        except OSError:
            return 0
