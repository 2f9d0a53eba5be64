"""The newest state in storage, when it is known what should be there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from orch_workers.checkpoint.errors import NothingRestorable, StorageUnavailable
from orch_workers.checkpoint.reader import Found, Restored

Stored = Restored | Found[Any]
"""What was brought here from storage."""

LISTS_MAX = 5
"""So often a list that lacks what is known to have been committed is asked for again: it may be behind."""


class Search:
    """Asks again and again (StorageUnavailable) while storage does not list what was committed; LISTS_MAX times.

    After that its word counts: a person may have removed it. `memory_step`: what need not come from storage; `find`
    is told it.
    """

    def __init__(
        self, find: Callable[[int], Stored | None], *, memory_step: int, committed_step: int
    ) -> None:
        self._find, self._memory_step, self._committed_step = find, memory_step, committed_step
        self._lists = 0
        self._gone: NothingRestorable | None = None
        """A list named checkpoints, and none of them was there."""

    def __call__(self) -> Stored | None:
        """None: what is in memory is the newest, or there never was anything."""
        self._lists += 1
        may_be_behind = self._lists <= LISTS_MAX
        try:
            found = self._find(self._memory_step)
        except NothingRestorable as error:
            if error.rejected or not may_be_behind:
                raise
            self._gone = error
            raise StorageUnavailable(str(error)) from error
        if found is None and self._memory_step < 0 and self._gone is not None:
            raise self._gone
        newest = max(self._memory_step, 0 if found is None else found.point.step)
        is_explained = found is not None and bool(found.rejected)
        if newest < self._committed_step and not is_explained and may_be_behind:
            raise StorageUnavailable(
                f"step {self._committed_step} was committed, and storage lists nothing newer than step {newest}"
            )
        return found
