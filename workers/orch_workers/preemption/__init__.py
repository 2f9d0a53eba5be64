"""Notices that this machine, or the job's place on it, goes away: where they come from and what is done about them.

One file per source; `watcher` asks them all in one thread; `leaving` turns a notice into an orderly departure.
Standard library only. docs/preemption.md says what each source needs and what was decided.
"""

from orch_workers.preemption.leaving import Leaving
from orch_workers.preemption.notice import Moment, Notice, Source, SourceError, deadline_in
from orch_workers.preemption.sources import sources_of
from orch_workers.preemption.watcher import Watcher

__all__ = ["Leaving", "Moment", "Notice", "Source", "SourceError", "Watcher", "deadline_in", "sources_of"]
