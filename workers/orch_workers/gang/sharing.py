"""How the agents of a gang agree on who writes what is the same on several ranks.

Each rank tells the leader the digests of what it holds of a step (`rows`); when the leader knows those of all ranks it
tells each of them who writes what (`owners`). Both are said again until they have arrived. The same rows give the
same answer whoever leads, so a step that is begun under one leader is finished under the next; and a rank that gets
no answer writes everything it holds, which is never wrong.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from orch_policies.sharing import Row, owners
from orch_workers.gang.words import Say

RESEND_S = 0.5
LOOK_S = 0.05
"""How often a rank that waits looks whether it should wait any longer."""
STEPS_MAX = 8
"""So many steps are remembered, the newest."""
DIGEST_BYTES = 16

Where = tuple[tuple[int, int], int]
"""Generation and step, as storage has them."""
KINDS = ("rows", "owners")
"""Of the messages in here."""

log = logging.getLogger(__name__)


class Sharing:
    """One rank's part in it; rank 0 leads. Thread-safe."""

    def __init__(self, rank: int, world_size: int, say: Say) -> None:
        self._rank, self._world_size, self._say = rank, world_size, say
        self._changed = threading.Condition()
        self._rows: dict[Where, dict[int, Sequence[Row]]] = {}
        self._owners: dict[Where, dict[int, tuple[int, ...]]] = {}

    def about(self, where: Where, go_on: Callable[[float], bool]) -> Agreement:
        """`go_on(seconds waited)`: whether to wait longer for an answer; what it raises ends the writing."""
        return Agreement(self, where, go_on)

    def heard(self, message: Mapping[str, Any]) -> None:
        """From another rank's agent."""
        try:
            where = (tuple(message["generation"]), int(message["step"]))
            if message["kind"] == "rows":
                self._take_rows(where, int(message["rank"]), _unpacked(message))
            else:
                with self._changed:
                    _remember(self._owners, where)[self._rank] = tuple(map(int, message["owners"]))
                    self._changed.notify_all()
        except (KeyError, ValueError, TypeError):
            log.exception("a message about sharing does not read")

    def _take_rows(self, where: Where, rank: int, rows: Sequence[Row]) -> None:
        """Of the leader alone."""
        with self._changed:
            known = _remember(self._rows, where)
            known[rank] = rows
            if len(known) < self._world_size:
                return
            found = {at: tuple(each) for at, each in owners(known).items()}
            before = self._owners.get(where, {})
            _remember(self._owners, where).update(found)
            self._changed.notify_all()
        for at, each in found.items():
            if at != self._rank and (at == rank or before.get(at) != each):
                self._say(at, {"kind": "owners", **_named(where), "owners": list(each)})

    def offer(self, where: Where, rows: Sequence[Row]) -> None:
        if self._rank == 0:
            self._take_rows(where, 0, rows)
        else:
            self._say(0, {"kind": "rows", "rank": self._rank, **_named(where), **_packed(rows)})

    def wait(
        self, where: Where, rows: Sequence[Row], go_on: Callable[[float], bool]
    ) -> tuple[int, ...] | None:
        began_s = said_s = time.monotonic()
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._answer(where) is not None, timeout=LOOK_S)
                found = self._answer(where)
            now_s = time.monotonic()
            if found is not None and len(found) == len(rows):
                return found
            if not go_on(now_s - began_s):
                return None
            if now_s - said_s >= RESEND_S:
                said_s = now_s
                self.offer(where, rows)

    def _answer(self, where: Where) -> tuple[int, ...] | None:
        return self._owners.get(where, {}).get(self._rank)


class Agreement:
    """`checkpoint.sharing.Agreement` about one step."""

    def __init__(self, sharing: Sharing, where: Where, go_on: Callable[[float], bool]) -> None:
        self._sharing, self._where, self._go_on = sharing, where, go_on
        self._rows: Sequence[Row] = ()

    def offer(self, rows: Sequence[Row]) -> None:
        self._rows = rows
        self._sharing.offer(self._where, rows)

    def owners(self) -> tuple[int, ...] | None:
        return self._sharing.wait(self._where, self._rows, self._go_on)


def _remember(known: dict[Where, dict[int, Any]], where: Where) -> dict[int, Any]:
    found = known.setdefault(where, {})
    while len(known) > STEPS_MAX:
        del known[next(iter(known))]
    return found


def _named(where: Where) -> dict[str, Any]:
    return {"generation": list(where[0]), "step": where[1]}


def _packed(rows: Sequence[Row]) -> dict[str, Any]:
    """Bytes, not text: 20,000 tensors make half a megabyte of it."""
    return {"what": b"".join(row.what for row in rows), "sizes": [row.size_bytes for row in rows]}


def _unpacked(message: Mapping[str, Any]) -> list[Row]:
    what, sizes = message["what"], message["sizes"]
    if len(what) != DIGEST_BYTES * len(sizes):
        raise ValueError("rows and sizes differ in number")
    return [
        Row(what[DIGEST_BYTES * at : DIGEST_BYTES * (at + 1)], int(size)) for at, size in enumerate(sizes)
    ]


__all__ = ["KINDS", "Agreement", "Sharing", "Where"]
