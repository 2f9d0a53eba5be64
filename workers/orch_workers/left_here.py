"""What earlier agents of a rank left on its machine, read by the one that comes after them."""

from __future__ import annotations

from typing import Any

from orch.model.generation import Generation
from orch_workers.config import WorkerConfig
from orch_workers.reports import Reports
from orch_workers.written import read_down


def left_here(
    config: WorkerConfig, reports: Reports
) -> tuple[int, dict[str, Any] | None, dict[str, Any] | None]:
    """The highest restart of this attempt, the end that the newest attempt told, and its success that it noted.

    Ends of attempts before a resume are not this one's: they are put away, and so is the mark that says that outputs
    lie in the working area only: it is in use again, and its own end will bring them home.
    """
    restart, end = reports.left_behind(config.attempt, since=config.resumed)
    config.paths.undelivered.unlink(missing_ok=True)
    done = read_down(config.paths.done)
    if done is not None and Generation.parse(done["generation"]).attempt < config.resumed:
        config.paths.done.unlink(missing_ok=True)
        done = None
    return restart, end, done
