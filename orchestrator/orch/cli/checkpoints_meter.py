"""How far long work has come, on stderr: a bar with rate and time left on a terminal, else a line now and then."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any, Self

from orch.cli.humans import span
from orch.cli.output import console, is_terminal, say
from orch.model.units import describe_size

if TYPE_CHECKING:
    from types import TracebackType

LINE_EVERY_S = 5.0
"""Between two lines where there is no terminal."""


class Meter:
    """`moved(n)` for every so many bytes. `total_bytes` is what there is to do."""

    def __init__(self, what: str, total_bytes: int) -> None:
        self._what, self._total = what, total_bytes
        self._done = 0
        self._bar: Any = None
        self._task: Any = None
        self._began = self._told = time.monotonic()

    def __enter__(self) -> Self:
        if is_terminal(sys.stderr) and self._total:
            from rich.progress import (
                BarColumn,
                DownloadColumn,
                Progress,
                TextColumn,
                TimeRemainingColumn,
                TransferSpeedColumn,
            )

            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                DownloadColumn(binary_units=True),
                TransferSpeedColumn(),
                TimeRemainingColumn(),
                console=console(sys.stderr),
                transient=True,
            )
            self._bar.start()
            self._task = self._bar.add_task(self._what, total=self._total)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def now(self, what: str) -> None:
        """What is being done, where that changes."""
        self._what = what
        if self._bar is not None:
            self._bar.update(self._task, description=what)

    def moved(self, size_bytes: int) -> None:
        self._done += size_bytes
        if self._bar is not None:
            self._bar.advance(self._task, size_bytes)
            return
        now = time.monotonic()
        if now - self._told >= LINE_EVERY_S:
            self._told = now
            say(self.line(now - self._began))

    def line(self, seconds_s: float) -> str:
        rate = self._done / seconds_s if seconds_s > 0 else 0.0
        left = f", {span(max(0, self._total - self._done) / rate)} left" if rate else ""
        return (
            f"{self._what}: {describe_size(self._done)} of {describe_size(self._total)}, "
            f"{describe_size(int(rate))}/s{left}"
        )
