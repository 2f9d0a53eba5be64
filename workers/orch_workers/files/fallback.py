"""Did a start die of the version it was given? Pure."""

from __future__ import annotations

import signal as signals
from dataclasses import dataclass

from orch_workers.prepared import Prepared

EXIT_OF_SIGNAL = 128
"""A shell says with 128 + n that its command was killed by signal n."""
_OWN_SIGNALS = {signals.SIGSEGV, signals.SIGABRT, signals.SIGBUS, signals.SIGILL, signals.SIGFPE}
"""What a program brings upon itself, as by reading a file that is not what it expects."""


@dataclass
class Start:
    """One start of the command, and how far it has come."""

    found: Prepared | None
    """What it was given."""
    number: int = 0
    """The newest version: that, or one of its own."""
    versions: int = 0
    """Of its own."""
    lines: int = 0
    """Of its log with a metric in them."""

    def __post_init__(self) -> None:
        self.number = self.restored

    @property
    def restored(self) -> int:
        return 0 if self.found is None else self.found.step


def falls_back(start: Start, code: int | None, signal: int | None) -> bool:
    """It ended by its own doing, and had shown no sign of progress: no version of its own, no metric in its log.

    A signal from outside says nothing about the file.
    """
    if start.found is None or start.versions or start.lines:
        return False
    if signal is None and code is not None and code > EXIT_OF_SIGNAL:
        signal = code - EXIT_OF_SIGNAL
    return bool(code) if signal is None else signal in _OWN_SIGNALS
