"""Asks the sources, each at its own interval, in one thread; tells each notice once, and again if it comes sooner.

A source that is not there costs one question, asked in the background, and is never asked again; nothing is logged
about it.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from orch_workers.preemption.notice import Moment, Notice, Source, SourceError, SourceSilentError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

LEAD_S = 120.0
"""A notice is told when no more than this is left: a machine that goes in an hour can work until then."""
SOONER_BY_S = 1.0
"""A deadline that comes nearer by less is the same one, seen through another clock."""
PROBE_AGAIN_S = (10.0, 60.0)
"""Pauses after which a service that did not answer at all is tried again; then it is taken to be absent."""
TROUBLE_DOUBLINGS_MAX = 2
"""A source that cannot be asked is asked less often, down to a quarter: a notice may be half a minute ahead."""
TOLD_MAX = 64
"""Notices remembered as told."""

log = logging.getLogger(__name__)


@dataclass
class _Watched:
    source: Source
    due_s: float = 0.0
    present: bool | None = None
    """None: not known yet."""
    silences: int = 0
    troubles: int = 0


class Watcher:
    """`start` returns at once. `on_notice` is called from the watcher's thread."""

    def __init__(
        self,
        sources: Sequence[Source],
        on_notice: Callable[[Notice], None],
        *,
        answered: Collection[str] = (),
        now: Callable[[], Moment] = Moment.now,
    ) -> None:
        """`answered`: keys of notices that an earlier agent of the job has left this machine for."""
        self._on_notice, self._answered, self._now = on_notice, frozenset(answered), now
        self._watched = [_Watched(source) for source in sources]
        self._told: dict[str, float] = {}
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="preemption", daemon=True)

    @property
    def names(self) -> list[str]:
        """Of the sources that are there, as far as is known."""
        return [watched.source.name for watched in self._watched if watched.present]

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Nothing is asked any more; a question that is under way ends by its own limit."""
        self._stopped.set()

    def join(self, limit_s: float) -> None:
        self._thread.join(limit_s)

    def _run(self) -> None:
        while not self._stopped.is_set():
            wait_s = self.look()
            if wait_s is None:
                return  # no source is there: nothing is ever asked again
            self._stopped.wait(wait_s)

    def look(self) -> float | None:
        """Asks whoever is due; returns seconds until the next one is, None when there is nobody to ask."""
        for watched in list(self._watched):
            if watched in self._watched and watched.due_s <= self._now().monotonic_s:
                self._ask(watched)
            if self._stopped.is_set():
                return None
        if not self._watched:
            return None
        return max(0.0, min(watched.due_s for watched in self._watched) - self._now().monotonic_s)

    def _ask(self, watched: _Watched) -> None:
        try:
            if watched.present is None and not self._probed(watched):
                return
            notice = watched.source.poll(self._now())
        except SourceError as error:
            self._trouble(watched, error)
            return
        except Exception as error:  # a fault of ours in one source must not silence the others
            log.exception("the preemption source %s failed", watched.source.name)
            self._trouble(watched, SourceError(str(error)))
            return
        watched.troubles = 0
        watched.due_s = self._now().monotonic_s + watched.source.interval_s
        if notice is not None:
            self._consider(notice)

    def _probed(self, watched: _Watched) -> bool:
        """Whether it is there. One that answers nothing sensible is not."""
        try:
            watched.present = watched.source.probe()
        except SourceSilentError:
            if watched.silences < len(PROBE_AGAIN_S):
                watched.due_s = self._now().monotonic_s + PROBE_AGAIN_S[watched.silences]
                watched.silences += 1
                return False
            watched.present = False
        except SourceError:
            watched.present = False
        if not watched.present:
            self._watched.remove(watched)
        elif watched.source.cloud:
            # A machine belongs to one provider.
            self._watched = [other for other in self._watched if other is watched or not other.source.cloud]
        return bool(watched.present)

    def _trouble(self, watched: _Watched, error: SourceError) -> None:
        if watched.troubles == 0:
            log.warning("the preemption source %s cannot be asked just now: %s", watched.source.name, error)
        watched.troubles += 1
        factor = 2 ** min(watched.troubles - 1, TROUBLE_DOUBLINGS_MAX)
        watched.due_s = self._now().monotonic_s + watched.source.interval_s * factor

    def _consider(self, notice: Notice) -> None:
        if notice.key in self._answered:
            return
        until_s = float("inf") if notice.deadline is None else notice.deadline.monotonic_s
        if notice.leaves and notice.deadline is not None and until_s - self._now().monotonic_s > LEAD_S:
            return  # it is asked for again until it is time
        told_s = self._told.get(notice.key)
        if told_s is not None and until_s > told_s - SOONER_BY_S:
            return
        self._told[notice.key] = until_s
        if len(self._told) > TOLD_MAX:
            del self._told[next(iter(self._told))]
        self._on_notice(notice)
