"""An append-only journal on the machine's own disk: written down, then acted upon.

One JSON document a line, each forced to disk before `append` returns. A crash can tear the last line only; it
is cut off when the journal is opened again, and left out when it is read.
"""

from __future__ import annotations

import io
import json
import os
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

LINE_BYTES_MAX = 1 << 20


class JournalDamagedError(ValueError):
    """A line that is not the last is no JSON document: more than a crash has happened to this file."""


class Journal:
    """Thread-safe; one writer process (whoever holds the worker's lock)."""

    def __init__(self, path: Path) -> None:
        """Opens or makes it. Raises JournalDamagedError."""
        self._path = path
        self._lock = threading.Lock()
        whole, _ = _parse(path)
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if os.fstat(self._descriptor).st_size != whole:
                os.ftruncate(self._descriptor, whole)
            os.fsync(self._descriptor)
            _sync_folder(path.parent)
        except OSError:
            os.close(self._descriptor)
            raise
        self._size_bytes = whole

    def append(self, entry: dict[str, Any]) -> None:
        """Returns when `entry` is on disk. After an OSError (a full disk) it is not in the file."""
        line = json.dumps(entry, separators=(",", ":"), allow_nan=False).encode() + b"\n"
        if len(line) > LINE_BYTES_MAX:
            raise ValueError(f"a journal entry of {len(line)} bytes is longer than {LINE_BYTES_MAX}")
        with self._lock:
            try:
                written = 0
                while written < len(line):
                    written += os.pwrite(self._descriptor, line[written:], self._size_bytes + written)
                os.fdatasync(self._descriptor)
            except OSError:
                os.ftruncate(self._descriptor, self._size_bytes)
                raise
            self._size_bytes += len(line)

    def close(self) -> None:
        with self._lock:
            if self._descriptor >= 0:
                os.close(self._descriptor)
                self._descriptor = -1


def read_journal(path: Path) -> list[dict[str, Any]]:
    """Every whole entry, oldest first; none when there is no file. Raises JournalDamagedError."""
    return _parse(path)[1]


def _parse(path: Path) -> tuple[int, list[dict[str, Any]]]:
    """Bytes up to the end of the last whole entry, and the entries."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return 0, []
    entries: list[dict[str, Any]] = []
    end = 0
    for number, line in enumerate(io.BytesIO(content), 1):
        entry = _entry(line)
        if entry is None:
            if end + len(line) < len(content):
                raise JournalDamagedError(f"{path}, line {number} is no entry: {line[:80]!r}")
            break
        entries.append(entry)
        end += len(line)
    return end, entries


def _entry(line: bytes) -> dict[str, Any] | None:
    if not line.endswith(b"\n"):
        return None
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) else None


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
