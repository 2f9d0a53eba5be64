"""Where a run's snapshots and reports go: to the agent of this worker, or (by hand) to a folder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from .fitting import Report, StartRules
    from .page import Word
    from .slots import Slot


class Rules(NamedTuple):
    """When a snapshot is due by counting; what is due by the clock is said through the word (page.py)."""

    steps: int | None = None
    epochs: int | None = None
    first: bool = True
    last: bool = True
    snapshots: int | None = None
    """After so many steps a snapshot that stays in memory, unless one for storage is due."""
    stop: tuple[str, str, int] | None = None
    """Early stopping: metric, mode (``min`` or ``max``), patience."""


class RestorePoint(NamedTuple):
    """A READY slot file to restore from. source: ``memory`` or ``storage``. skip: how many steps' data is left out
    then.
    """

    path: str
    source: str
    generation: str
    step: int
    skip: int = 0


class StartPoint(NamedTuple):
    """A READY slot file of another job, for one that has nothing of its own yet; label: whose, for people."""

    path: str
    label: str
    rules: StartRules


class Grant(NamedTuple):
    """A slot that this process may write now."""

    number: int
    slot: Slot


class Sink(ABC):
    """What a Run needs. All calls come from the thread that trains."""

    generation: tuple[int, int] = (0, 0)
    rules: Rules = Rules()
    restore: RestorePoint | None = None
    start: StartPoint | None = None
    passed_over: RestorePoint | None = None
    """What could have been restored, had the script not said restore=False."""

    @abstractmethod
    def progress(self, step: int, epoch: int) -> Word:
        """A step is complete. Called at each one, so it costs no system call."""

    @abstractmethod
    def word(self) -> Word: ...

    def is_let_go_to_leave(self, step: int) -> bool:
        """Waits, when the word says that nobody goes further than this `step` for now, for the next word; whether that
        is to leave.
        """
        return False

    @abstractmethod
    def grant(self, size_bytes: int, step: int, reason: str, *, wait: bool) -> Grant | None:
        """A slot of at least `size_bytes`; None when both are busy (with `wait`, only if none came free in
        time).
        """

    @abstractmethod
    def saved(self, grant: Grant, snapshot: dict[str, Any]) -> None:
        """The granted slot is READY. `snapshot`: step, epoch, reason, blocked_s."""

    @abstractmethod
    def save_failed(self, grant: Grant, message: str) -> None: ...

    @abstractmethod
    def restored(self, step: int, source: str, seconds_s: float) -> None: ...

    def started(self, label: str, report: Report) -> None:  # noqa: B027 - by hand nothing is started from
        """The run has begun with what fits of another job's state."""

    @abstractmethod
    def mismatch(self, message: str) -> None: ...

    @abstractmethod
    def metrics(self, step: int, epoch: int, values: dict[str, Any]) -> None:
        """May be dropped; never waits."""

    @abstractmethod
    def note(self, level: str, message: str) -> None:
        """level: ``info`` or ``warning``."""

    def interrupted(self, step: int, saved_step: int) -> None:  # noqa: B027 - only a person at a terminal is told
        """The run was asked to leave and is about to; `saved_step` is where it will go on."""

    @abstractmethod
    def finished(self, step: int, epoch: int) -> None: ...

    @abstractmethod
    def close(self) -> None: ...
