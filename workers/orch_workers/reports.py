"""What an agent tells the controller: numbered entries that are kept until asked for, and the newest progress.

Entries are written to the journal on the machine's disk before anybody can act on them, so that an agent's
successor (or a controller that was away) can still tell what happened: adoption merges the journal into the store.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any

from orch.model.events import Event, event_to_dict
from orch.model.generation import Generation
from orch_workers.journal import Journal, JournalDamagedError, read_journal

POLL_LIMIT_S = 20.0
"""Longest an `events` call waits before it answers with nothing."""
ENTRIES_MAX = 10_000
"""Entries kept in memory; a controller that was away for longer reads the rest from the journal's file."""


log = logging.getLogger(__name__)


class Reports:
    """Thread-safe. `add` by the worker's threads, `wait` by the threads that answer the controller."""

    def __init__(self, folder: Path, attempt: int, rank: int) -> None:
        self._attempt, self._rank = attempt, rank
        self._changed = threading.Condition()
        self._entries: deque[dict[str, Any]] = deque(maxlen=ENTRIES_MAX)
        self._progress: dict[str, Any] | None = None
        self._progress_number = 0
        self._told_progress = 0
        self._backlog = [
            entry for path in sorted(folder.glob("journal-*.jsonl")) for entry in _entries_of(path)
        ]
        self._journal = Journal(folder / f"journal-{attempt:06d}.jsonl")
        self._seq = max((e["seq"] for e in self._backlog if e["attempt"] == attempt), default=0)

    @property
    def backlog(self) -> list[dict[str, Any]]:
        """Entries that agents of this rank left on this machine before this one started, oldest first."""
        return self._backlog

    def left_behind(self, attempt: int, *, since: int = 0) -> tuple[int, dict[str, Any] | None]:
        """What this machine's journals say for whoever comes after: the highest restart of `attempt`, and the end of
        the newest attempt from `since` up to it, if its worker had ended.
        """
        restarts = [
            Generation.parse(entry["event"]["generation"]).restart
            for entry in self._backlog
            if entry["attempt"] == attempt and entry["event"]["type"] in {"ProcessStarted", "RestartDecided"}
        ]
        newest = max((entry["attempt"] for entry in self._backlog), default=0)
        ends = [
            e["event"]
            for e in self._backlog
            if e["attempt"] == newest >= since and e["event"]["type"] == "WorkerEnded"
        ]
        return max(restarts, default=0), ends[-1] if ends else None

    def add(self, event: Event, **extra: Any) -> None:
        """Journals and keeps `event`; `extra` goes beside it for views (not for decisions)."""
        with self._changed:
            self._seq += 1
            entry = {
                "attempt": self._attempt,
                "rank": self._rank,
                "seq": self._seq,
                "t_us": time.time_ns() // 1000,
                "event": event_to_dict(event),
                "extra": extra,
            }
            try:
                self._journal.append(entry)
            except (OSError, ValueError):
                # A full disk must not end a healthy run. Should this agent die too, its successor is of a newer
                # attempt, so that no generation is made twice.
                log.exception("an entry could not be journalled; it is kept in memory")
            self._entries.append(entry)
            self._changed.notify_all()

    def progress(self, values: dict[str, Any]) -> None:
        with self._changed:
            self._progress = values
            self._progress_number += 1
            self._changed.notify_all()

    def wait(self, cursor: int, limit_s: float = POLL_LIMIT_S) -> dict[str, Any]:
        """Entries with a number above `cursor` and progress not told before; empty after `limit_s`."""
        deadline = time.monotonic() + limit_s
        with self._changed:
            while True:
                entries = [entry for entry in self._entries if entry["seq"] > cursor]
                fresh = self._progress_number > self._told_progress
                left = deadline - time.monotonic()
                if entries or fresh or left <= 0:
                    self._told_progress = self._progress_number
                    return {"entries": entries, "progress": self._progress if fresh else None}
                self._changed.wait(left)


def _entries_of(path: Path) -> list[dict[str, Any]]:
    """A damaged journal of an earlier attempt is set aside: what it told is in the store, or is lost."""
    try:
        return read_journal(path)
    except JournalDamagedError:
        log.exception("a journal is damaged and was set aside")
        path.replace(path.with_suffix(".damaged"))
        return []
