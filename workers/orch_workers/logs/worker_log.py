"""A worker's log: followed as it grows, copied to storage piece by piece, looked into when something failed.

The command writes straight into the file, so that its log survives everything. Beside it, `<log>.times` says
when which part was seen: pairs of (byte offset, microseconds UTC), 16 bytes each, rising.
"""

from __future__ import annotations

import bisect
import contextlib
import re
import struct
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from orch_workers.checkpoint.errors import AlreadyExists
from orch_workers.logs.redaction import Redactor

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

LOOK_EVERY_S = 0.2
CHUNK_BYTES = 1 << 20
"""A piece in storage is at most this long."""
SHIP_AFTER_MIN_S, SHIP_AFTER_MAX_S = 5.0, 60.0
"""A piece that is not full waits this long, the next ones longer, so that a long job has few of them."""
RETRY_MIN_S, RETRY_MAX_S = 1.0, 60.0
CLOSE_LIMIT_S = 10.0
TIMES_FINE_MAX = 100_000
"""After so many entries the times are noted every `TIMES_COARSE_S` only: no list may outgrow its log."""
TIMES_COARSE_S = 10.0
TRACEBACK_CHARS_MAX = 16_000
MESSAGE_LINES_MAX = 20
ERROR_LINES_MAX = 10
_TIMES = struct.Struct("<QQ")
_HEADING = "Traceback (most recent call last):"


@dataclass(frozen=True)
class _Part:
    """From `start` on the log belongs below `prefix`."""

    start: int
    prefix: str


class LogShipper:
    """Follows one log file. Storage that is slow or away delays the copies, never the training.

    Pieces are `<prefix>/<offset of the first byte, twelve digits>.log`, cut at line ends where there are any,
    and free of the redactor's secrets.
    """

    def __init__(
        self,
        log_path: Path,
        create: Callable[[str, bytes], None],
        prefix: str,
        *,
        redactor: Redactor | None = None,
    ) -> None:
        """Starts at the file's present end. `create` writes a new object or raises.

        After AlreadyExists the piece counts as shipped: only this generation writes below this prefix, so it
        is there from a try whose answer was lost.
        """
        self._path = log_path
        self._create = create
        self._redactor = redactor or Redactor()
        self._changed = threading.Condition()
        size = self._size()
        self._parts = [_Part(size, prefix)]
        self._shipped = size
        self._seen = size
        self._closing = False
        self._urgent = False
        self._hurry = False  # one more try now, instead of waiting for the time of the next
        self._ship_after_s = SHIP_AFTER_MIN_S
        self._waiting_since_s: float | None = None
        self.trouble = ""
        """Why the newest piece is not in storage yet; empty while all is well."""
        self._threads = [
            threading.Thread(target=self._watch, args=(size,), name="log watcher", daemon=True),
            threading.Thread(target=self._ship_all, name="log shipper", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def begin(self, prefix: str) -> None:
        """What is written from now on belongs below `prefix`: called between two starts of the command."""
        with self._changed:
            self._seen = self._size()
            self._parts.append(_Part(self._seen, prefix))
            self._ship_after_s = SHIP_AFTER_MIN_S
            self._changed.notify_all()

    def flush(self, limit_s: float) -> bool:
        """Copies what there is now; False when it is not in storage after `limit_s`."""
        with self._changed:
            self._seen = goal = self._size()
            self._urgent = self._hurry = True
            self._changed.notify_all()
            return self._changed.wait_for(lambda: self._shipped >= goal, limit_s)

    def close(self, limit_s: float = CLOSE_LIMIT_S) -> bool:
        """Copies the rest and ends; False when something did not reach storage in time (see `trouble`)."""
        done = self.flush(limit_s)
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._threads[0].join()
        if done:
            # Otherwise it may hang in storage: a daemon, which ends when that answers.
            self._threads[1].join()
        return done

    # watching

    def _watch(self, noted: int) -> None:
        times = times_path(self._path)
        times.touch(mode=0o600)
        with times.open("r+b", buffering=0) as file:
            count = file.seek(0, 2) // _TIMES.size
            file.truncate(count * _TIMES.size)
            file.seek(0, 2)
            noted_at_s = 0.0
            while True:
                with self._changed:
                    ending = self._closing
                    if not ending:
                        self._changed.wait(LOOK_EVERY_S)
                    self._seen = seen = max(self._size(), self._seen)
                    if seen > self._shipped and self._waiting_since_s is None:
                        self._waiting_since_s = time.monotonic()
                    self._changed.notify_all()
                now_s = time.monotonic()
                if seen > noted and (count < TIMES_FINE_MAX or now_s - noted_at_s >= TIMES_COARSE_S):
                    with contextlib.suppress(OSError):  # a full disk: the times are a comfort, the job is not
                        file.write(_TIMES.pack(noted, time.time_ns() // 1000))
                    noted, noted_at_s, count = seen, now_s, count + 1
                if ending:
                    return

    def _size(self) -> int:
        try:
            return self._path.stat().st_size
        except FileNotFoundError:
            return 0

    # shipping

    def _ship_all(self) -> None:
        retry_s = RETRY_MIN_S
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closing or self._due(), self._pause_s())
                if not self._due():
                    if self._closing:
                        return
                    continue
                prefix, start, end = self._next_piece()
            try:
                if end > start:
                    self._ship(prefix, start, end)
            except Exception as error:  # storage's, whatever it is: the file is still there to try again
                self.trouble = f"{type(error).__name__}: {error}"
                with self._changed:
                    if self._closing:
                        return
                    self._changed.wait_for(lambda: self._closing or self._hurry, retry_s)
                    self._hurry = False
                retry_s = min(retry_s * 2, RETRY_MAX_S)
                continue
            self.trouble, retry_s = "", RETRY_MIN_S
            with self._changed:
                self._advance(end)

    def _ship(self, prefix: str, start: int, end: int) -> None:
        data = self._redactor.read(self._path, start, end)
        with contextlib.suppress(AlreadyExists):
            self._create(f"{prefix}/{start:012d}.log", data)

    def _advance(self, end: int) -> None:
        self._shipped = end
        if len(self._parts) > 1 and end >= self._parts[1].start:
            del self._parts[0]
        if end >= self._seen:
            self._urgent = False
        self._waiting_since_s = None if end >= self._seen else time.monotonic()
        self._ship_after_s = min(self._ship_after_s * 1.5, SHIP_AFTER_MAX_S)
        self._changed.notify_all()

    def _due(self) -> bool:
        waiting = self._seen - self._shipped
        if len(self._parts) > 1:
            return True
        if waiting <= 0:
            return False
        return self._urgent or waiting >= CHUNK_BYTES or self._pause_s() == 0

    def _pause_s(self) -> float | None:
        if self._waiting_since_s is None:
            return None
        return max(0.0, self._waiting_since_s + self._ship_after_s - time.monotonic())

    def _next_piece(self) -> tuple[str, int, int]:
        start, last = self._shipped, self._seen
        whole = self._urgent
        if len(self._parts) > 1:
            last, whole = self._parts[1].start, True
        end = min(last, start + CHUNK_BYTES)
        if end < last or not whole:
            with self._path.open("rb") as file:
                file.seek(start)
                data = file.read(end - start)
            # Progress bars end their lines with a carriage return.
            cut = max(data.rfind(b"\n"), data.rfind(b"\r")) + 1
            end = start + cut if cut else end
        return self._parts[0].prefix, start, end


# reading


def read_part(log_path: Path, offset: int, size_bytes: int) -> bytes:
    """At most so much from there; empty where there is no log yet."""
    try:
        with log_path.open("rb") as file:
            file.seek(offset)
            return file.read(size_bytes)
    except FileNotFoundError:
        return b""


def times_path(log_path: Path) -> Path:
    return log_path.with_name(log_path.name + ".times")


def read_times(log_path: Path, start: int, end: int) -> list[tuple[int, int]]:
    """(byte offset, microseconds UTC), rising, for the bytes `start` to `end`: seen then, from there on.

    The first lies at or before `start`, if that was noted. Empty when nothing was.
    """
    try:
        data = times_path(log_path).read_bytes()
    except FileNotFoundError:
        return []
    whole = data[: len(data) // _TIMES.size * _TIMES.size]
    entries: list[tuple[int, int]] = [(offset, time_us) for offset, time_us in _TIMES.iter_unpack(whole)]
    first = max(0, bisect.bisect_right(entries, (start, 1 << 64)) - 1)
    return [entry for entry in entries[first:] if entry[0] < end]


def tail(log_path: Path, size_bytes_max: int, redactor: Redactor | None = None) -> str:
    """The end of a log, from the beginning of a line on; empty when there is no file."""
    try:
        size = log_path.stat().st_size
        start = max(0, size - size_bytes_max)
        data = (redactor or Redactor()).read(log_path, start, size)
    except FileNotFoundError:
        return ""
    if start > 0:
        data = data.partition(b"\n")[2] or data
    return data.decode(errors="replace")


def last_lines(text: str, lines_max: int = ERROR_LINES_MAX) -> str | None:
    """The end of what a command wrote that died without a traceback; None when it wrote nothing."""
    return "\n".join(text.rstrip().splitlines()[-lines_max:]) or None


def last_traceback(text: str) -> str | None:
    """The last Python traceback in `text`, with those it arose from; None when there is none.

    Lines with the same beginning as its heading (torchrun's `[rank0]: `) are shown without it.
    """
    lines = text.splitlines()
    headings = [number for number, line in enumerate(lines) if _HEADING in line]
    if not headings:
        return _syntax_error(lines)
    prefix = re.match(r"(?:\[[^\]]*\]:? ?)*", lines[headings[-1]])
    beginning = prefix[0] if prefix else ""
    stripped = [line.removeprefix(beginning) for line in lines]
    first = headings[-1]
    for heading in reversed(headings[:-1]):
        # A chain: "During handling of the above exception…" or "The above exception was the direct cause…".
        if not any("above exception" in line for line in stripped[heading:first]):
            break
        first = heading
    found = "\n".join(stripped[first : _end_of_traceback(stripped, headings[-1])]).rstrip()
    if len(found) > TRACEBACK_CHARS_MAX:
        half = TRACEBACK_CHARS_MAX // 2
        found = f"{found[:half]}\n… {len(found) - 2 * half} characters left out …\n{found[-half:]}"
    return found


def _syntax_error(lines: list[str]) -> str | None:
    """A script that is no Python has no traceback, only the place and the error."""
    for at in range(len(lines) - 1, -1, -1):
        if lines[at].startswith(("SyntaxError:", "IndentationError:", "TabError:")):
            for first in range(at - 1, max(-1, at - MESSAGE_LINES_MAX), -1):
                if lines[first].startswith('  File "'):
                    return "\n".join(lines[first : at + 1])
    return None


def _end_of_traceback(lines: list[str], heading: int) -> int:
    """Behind the exception's message: up to an empty line, and at most `MESSAGE_LINES_MAX` lines of it."""
    indent = len(lines[heading]) - len(lines[heading].lstrip(" |+"))
    at = heading + 1
    while at < len(lines) and (lines[at][indent : indent + 1] in ("", " ") or not lines[at].strip()):
        at += 1  # the frames
    last = min(len(lines), at + MESSAGE_LINES_MAX)
    while at < last and lines[at].strip():
        at += 1
    return at
