"""What a fork does to a run: the copy in the child is not the one that trains."""

from __future__ import annotations

import os
import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .run import Run


def forget_in_children(run: Run) -> None:
    """Told at the fork, a run need not ask at each step which process it is in."""
    known = weakref.ref(run)

    def after_fork() -> None:
        copy = known()
        if copy is not None:
            copy.forked()

    os.register_at_fork(after_in_child=after_fork)
