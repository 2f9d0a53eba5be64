"""The agent's part of `orch drill`: it really kills the training process at given steps, and ends the run at one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orch_workers.training.page import Page
from orch_workers.training.protocol import EXIT_LEFT


class Drill:
    """What the job was given by `orch drill`; nothing for every other job."""

    def __init__(self, given: Mapping[str, Any], rank: int = 0, world_size: int = 1) -> None:
        self._rank, self._world_size = rank, world_size
        self.stop_at: int | None = given.get("stop_at")
        self._kill_at: tuple[int, ...] = tuple(given.get("kill_at", ()))

    def pending(self, restart: int) -> bool:
        """Whether a kill is still to come in this start (counted from 1). The ranks of a gang take turns."""
        is_its_turn = (restart - 1) % self._world_size == self._rank
        return 0 < restart <= len(self._kill_at) and is_its_turn

    def kill_is_due(self, restart: int, step: int) -> bool:
        return self.pending(restart) and step >= self._kill_at[restart - 1]

    def prepare(self, page: Page) -> None:
        """Before the process looks at it: it will save and leave at the drill's last step."""
        if self.stop_at is not None:
            page.put_word(save_at=self.stop_at, stop=True)

    def is_over(self, code: int | None, step: int) -> bool:
        """Whether the process has left because the drill's last step was reached: that is its success."""
        return self.stop_at is not None and code == EXIT_LEFT and step >= self.stop_at
