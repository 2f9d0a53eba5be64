"""Without orch: checkpoints go to a folder beside the script."""

from __future__ import annotations

from typing import Any, Callable

from .page import Word
from .sink import Grant, Sink


class UnkeptSink(Sink):
    """Nothing is kept: the checkpoint side of orch is not installed in this interpreter."""

    _WORD = Word(0, 0, False, 0)

    def progress(self, step: int, epoch: int) -> Word:
        return self._WORD

    def word(self) -> Word:
        return self._WORD

    def grant(self, size_bytes: int, step: int, reason: str, *, wait: bool) -> Grant | None:
        return None

    def saved(self, grant: Grant, snapshot: dict[str, Any]) -> None:
        pass

    def save_failed(self, grant: Grant, message: str) -> None:
        pass

    def restored(self, step: int, source: str, seconds_s: float) -> None:
        pass

    def mismatch(self, message: str) -> None:
        pass

    def metrics(self, step: int, epoch: int, values: dict[str, Any]) -> None:
        pass

    def note(self, level: str, message: str) -> None:
        pass

    def finished(self, step: int, epoch: int) -> None:
        pass

    def close(self) -> None:
        pass


def local_sink(say: Callable[[str], None]) -> Sink:
    say("no checkpoints are made: the checkpoint side of orch is not installed in this interpreter")
    return UnkeptSink()
