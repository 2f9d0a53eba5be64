"""What a training process says of itself, and what its keeper has to find out where it says nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from orch_workers.prepared import Prepared
from orch_workers.training.page import Progress


class Launched(Protocol):
    """The launcher, as far as a keeper asks it."""

    @property
    def workdir(self) -> Path: ...
    def pids(self) -> list[int]: ...
    def tell_restored(self, step: int, source: str, seconds_s: float) -> None: ...
    def tell_metrics(self, step: int, values: Mapping[str, Any]) -> None: ...


class Speaking:
    """Of a training process that speaks to its agent: nothing has to be found out."""

    left_behind: tuple[tuple[str, int, str], ...] = ()
    """Checkpoints that `failed_at` has marked, so that no start gets them again: generation, step and why."""

    def attach(self, launcher: Launched) -> None:
        """Told once, before the first start."""

    def progress(self) -> Progress | None:
        """How far the training process is; None: it says so itself."""
        return None

    def beat(self) -> Progress | None:
        """What rises with every sign of its progress, where `progress` is known here."""
        return None

    def fitted(self, found: Prepared | None, told: object) -> Prepared | None:
        """What a process loads that has told which pieces of divided tensors it holds."""
        return found

    def failed_at(self, step: int | None, code: int | None, signal: int | None) -> int | None:
        """The training process has failed, standing at `step`; the step that the restart policy hears of."""
        return step
