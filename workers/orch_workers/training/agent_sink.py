"""Under orch: the agent owns the slots and everything behind them; here is only the talk with it
(protocol.py).
"""

from __future__ import annotations

import contextlib
import os
import platform
import time
from typing import TYPE_CHECKING, Any, Sequence

from .connection import Connection
from .errors import AgentLostError, RefusedError
from .fitting import StartRules
from .page import Page, Word
from .protocol import PROTOCOL_VERSION
from .sink import Grant, RestorePoint, Rules, Sink, StartPoint
from .slots import Slot, parse_generation

if TYPE_CHECKING:
    from .fitting import Report

HELD_LOOK_S = 0.001
"""How often a process that is held looks for the next word."""
NAMES_MAX = 5_000
"""Names of one kind in one message; a line has a limit, and the log has them all."""


class AgentSink(Sink):
    def __init__(
        self,
        socket_path: str,
        frameworks: dict[str, str],
        *,
        restore: bool,
        places: Sequence[dict[str, Any]] = (),
    ) -> None:
        """Raises RefusedError with the agent's sentence, AgentLostError when there is none.

        `places`: what this rank holds of divided tensors (sharded.py).
        """
        self._connection = Connection(socket_path)
        welcome = self._connection.request(
            {
                "type": "hello",
                "protocol": PROTOCOL_VERSION,
                "pid": os.getpid(),
                "python": platform.python_version(),
                "frameworks": frameworks,
                "restore": restore,
                **({"places": list(places)} if places else {}),
            }
        )
        if welcome["type"] == "refused":
            self._connection.close()
            raise RefusedError(welcome["message"])
        self.generation = parse_generation(welcome["generation"])
        rules = welcome.get("rules") or {}
        self.rules = Rules(
            rules.get("steps"),
            rules.get("epochs"),
            bool(rules.get("first", True)),
            bool(rules.get("last", True)),
            rules.get("snapshots"),
            tuple(rules["stop"]) if rules.get("stop") else None,
        )
        point = welcome.get("restore")
        if point is not None:
            found = RestorePoint(
                point["path"], point["source"], point["generation"], point["step"], point.get("skip", 0)
            )
            self.restore, self.passed_over = (found, None) if restore else (None, found)
        start = welcome.get("start")
        if start is not None and restore:
            maps = tuple((old, new) for old, new in start["maps"])
            self.start = StartPoint(start["path"], start["label"], StartRules(tuple(start["only"]), maps))
        self._page = Page(welcome["page"])
        self._acked = 0
        self._slots: dict[str, Slot] = {}
        self._identities: dict[str, tuple[int, int, int]] = {}

    def progress(self, step: int, epoch: int) -> Word:
        page = self._page
        page.put_progress(step, epoch)
        word = page.read_word()
        if word.number != self._acked:
            page.ack(word.number, step)
            self._acked = word.number
        return word

    def word(self) -> Word:
        return self._page.read_word()

    def is_let_go_to_leave(self, step: int) -> bool:
        page = self._page
        word = page.read_word()
        while word.hold and step >= word.save_at and time.monotonic_ns() < word.deadline_ns:
            time.sleep(HELD_LOOK_S)
            word = page.read_word()
        return word.stop and step >= word.save_at

    def grant(self, size_bytes: int, step: int, reason: str, *, wait: bool) -> Grant | None:
        answer = self._connection.request(
            {"type": "save", "size_bytes": size_bytes, "step": step, "reason": reason, "wait": wait}
        )
        if answer["type"] != "slot":
            return None
        return Grant(answer["index"], self._slot(answer["path"]))

    def _slot(self, path: str) -> Slot:
        """Mappings are kept between saves: the first touch of fresh ones costs as much as the copy."""
        known = self._slots.get(path)
        status = os.stat(path)
        identity = (status.st_dev, status.st_ino, status.st_size)
        if known is not None and self._identities.get(path) == identity:
            return known
        if known is not None:
            known.close()
        self._slots[path] = Slot(path, writable=True)
        self._identities[path] = identity
        return self._slots[path]

    def saved(self, grant: Grant, snapshot: dict[str, Any]) -> None:
        self._connection.tell({"type": "saved", "index": grant.number, **snapshot})

    def save_failed(self, grant: Grant, message: str) -> None:
        self._connection.tell({"type": "save_failed", "index": grant.number, "message": message})

    def restored(self, step: int, source: str, seconds_s: float) -> None:
        self._page.put_progress(step, 0)
        self._connection.tell({"type": "restored", "step": step, "source": source, "seconds_s": seconds_s})

    def started(self, label: str, report: Report) -> None:
        told = {name: names[:NAMES_MAX] for name, names in report._asdict().items() if name != "loaded"}
        counts = {name: len(names) for name, names in report._asdict().items()}
        self._connection.tell({"type": "started", "from": label, "counts": counts, **told})

    def mismatch(self, message: str) -> None:
        self._connection.tell({"type": "mismatch", "message": message})

    def metrics(self, step: int, epoch: int, values: dict[str, Any]) -> None:
        self._connection.offer({"type": "metrics", "step": step, "epoch": epoch, "values": values})

    def note(self, level: str, message: str) -> None:
        self._connection.offer({"type": "note", "level": level, "message": message})

    def finished(self, step: int, epoch: int) -> None:
        # With no agent left there is nobody to tell; the exit status of a script that is done speaks for it.
        with contextlib.suppress(AgentLostError):
            self._connection.request({"type": "finished", "step": step, "epoch": epoch})

    def close(self) -> None:
        for slot in self._slots.values():
            slot.close()
        self._connection.close()
