"""Retention on a real storage: what the rules need to know is learned once, what goes is looked at right before.

A writer that keeps its `Retainer` pays, after a commit that pushes nothing out: no request at all, or one read of
the manifest it has just written when a rule asks for times or metrics. For each checkpoint that goes: a list of the
generations, a look for a pin and for a mark of quarantine, and the deletions. Every RELIST_SAVES saves or RELIST_S
seconds, and with each generation, four lists more, which tell what others have pinned, unpinned or removed.
Manifests never change, so none is read twice.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

from orch_policies import retention
from orch_workers.checkpoint.errors import Damaged, StorageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from orch_workers.checkpoint.catalog import Catalog, RestorePoint
    from orch_workers.checkpoint.chain import Generation

    Place = tuple[Generation, int]

RELIST_SAVES = 20
RELIST_S = 300.0
"""How long what others have pinned, unpinned or removed may go unseen. It delays nothing but deletions: a pin is
looked for right before each.
"""
READS_PER_SAVE_MAX = 64
"""Manifests read after one save. Until all are known nothing is removed."""
READS_AT_ONCE = 8
REMOVALS_PER_SAVE_MAX = 16
"""The newest snapshot waits meanwhile; what is left goes after the next save."""
LOOKED_S_MAX = 5.0
"""What was looked up before a deletion counts for so long: a process may have been stopped in between, for hours."""
LOOKS_MAX = 3
HINT_AFTER = 5
"""Checkpoints without the metric of `keep.best` before it is said."""


class Retained(NamedTuple):
    """What a retention left, each with the rules that ask for it, and what it removed; newest first."""

    kept: dict[RestorePoint, str]
    removed: list[RestorePoint]


class _Facts(NamedTuple):
    """Of a manifest, as far as rules look at it."""

    created_us: int
    metrics: tuple[tuple[str, float], ...]


class Retainer:
    """Applies the rules to one job's checkpoints, again and again. Not for several threads.

    Only what lies on the chain of the newest generation is looked at. Quarantined checkpoints are kept for a person
    to look at, and count for nothing.
    """

    def __init__(
        self,
        catalog: Catalog,
        rules: retention.Rules,
        *,
        now_us: Callable[[], int] = lambda: time.time_ns() // 1000,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._catalog, self._rules = catalog, rules
        self._now_us, self._monotonic = now_us, monotonic
        self._newest: Generation | None = None
        self._points: dict[Place, RestorePoint] = {}
        self._pinned: set[Place] = set()
        self._facts: dict[Place, _Facts] = {}
        self._saves, self._listed_s = 0, 0.0
        self._unscored = 0
        self._untold: list[RestorePoint] = []

    def after(self, committed: RestorePoint) -> Retained:
        """After a commit of this writer: removes what no rule asks for any more. May be called again when it has
        raised a StorageError; what it had removed by then is told by the call that goes through.
        """
        stale = self._saves >= RELIST_SAVES or self._monotonic() - self._listed_s > RELIST_S
        if self._newest != committed.generation or stale:
            self._list()
        if self._newest != committed.generation:
            return Retained({}, [])  # another generation has begun: what goes is for its writer to say
        self._points.setdefault(committed[:2], committed)
        self._saves += 1
        if not self._learn(READS_PER_SAVE_MAX):
            return Retained(dict.fromkeys(self._sorted(), "not looked at yet"), [])
        judged = self._judged()
        self._count_unscored(committed)
        kept, _ = self._remove(judged, REMOVALS_PER_SAVE_MAX)
        removed, self._untold = self._untold, []
        return Retained(kept, removed[::-1])

    def retain_after(self, committed: RestorePoint, note: Callable[[str], None]) -> list[RestorePoint]:
        """What went after a commit, newest first. A storage that fails here has the checkpoint all the same, and what
        is to go is looked for again after the next one.
        """
        try:
            removed = self.after(committed).removed
        except (StorageError, Damaged) as error:
            note(f"older checkpoints are not deleted for now: {error}")
            return []
        if self.hint:
            note(self.hint)
        return removed

    def judge(self) -> Retained:
        """What there is now, and what a retention would remove; nothing is changed."""
        self._list()
        self._learn(None)
        return self._judged()

    def retain(self) -> Retained:
        """Removes all that no rule asks for."""
        return self._remove(self.judge(), None)

    @property
    def hint(self) -> str:
        """What a person should know: that `keep.best` names a metric which no checkpoint has. "" otherwise."""
        best = self._rules.best
        if best is None or self._unscored < HINT_AFTER:
            return ""
        return (
            f"keep.best: none of {HINT_AFTER} checkpoints in a row has a value of {best.metric!r}, so none is "
            f"kept for it; a checkpoint carries the metrics of its own step: give it to that step, "
            f"run.step({best.metric}=…), and call run.save() after it"
        )

    def _list(self) -> None:
        self._newest = self._catalog.newest_generation()
        self._points = {point[:2]: point for point in self._catalog.restore_points()}
        self._pinned = self._catalog.pinned()
        self._facts = {place: facts for place, facts in self._facts.items() if place in self._points}
        self._saves, self._listed_s = 0, self._monotonic()

    def _learn(self, limit: int | None) -> bool:
        """Reads manifests that are not known yet, and are needed; False when there are more than `limit`."""
        if not self._rules.needs_manifests:
            return True
        unknown = [point for place, point in self._points.items() if place not in self._facts]
        now = unknown if limit is None else unknown[-limit:]
        if len(now) <= 1:
            found: Iterable[_Facts] = [self._read(point) for point in now]
        else:
            with ThreadPoolExecutor(READS_AT_ONCE, thread_name_prefix="manifest") as pool:
                found = list(pool.map(self._read, now))
        self._facts.update(zip((point[:2] for point in now), found, strict=True))
        return len(now) == len(unknown)

    def _read(self, point: RestorePoint) -> _Facts:
        """One that does not read is found and quarantined when it is to be restored, not here."""
        try:
            manifest = self._catalog.manifest(point)
        except Damaged:
            return _Facts(point.committed_us, ())
        return _Facts(manifest.created_us, _metrics(manifest.metrics))

    def _judged(self) -> Retained:
        described = {self._described(point): point for point in self._points.values()}
        kept = retention.keep(described, self._rules, pinned=self._pinned, now_us=self._now_us())
        asked = {described[checkpoint]: reason for checkpoint, reason in kept.items()}
        return Retained(asked, [point for point in self._sorted() if point not in asked])

    def _described(self, point: RestorePoint) -> retention.Checkpoint:
        facts = self._facts.get(point[:2], _Facts(point.committed_us, ()))
        return retention.Checkpoint(point.generation, point.step, facts.created_us, metrics=facts.metrics)

    def _sorted(self) -> list[RestorePoint]:
        return sorted(self._points.values(), key=lambda p: (p.step, p.generation), reverse=True)

    def _count_unscored(self, committed: RestorePoint) -> None:
        best, facts = self._rules.best, self._facts.get(committed[:2])
        if best is None or facts is None:
            return
        scored = any(name == best.metric for name, _ in facts.metrics)
        self._unscored = 0 if scored else self._unscored + 1

    def _remove(self, judged: Retained, limit: int | None) -> Retained:
        """The oldest first, so that whatever happens the newer are there."""
        removed, kept = [], dict(judged.kept)
        for point in judged.removed[::-1][:limit]:
            why = self._remove_one(point)
            if why is None:
                removed.append(point)
            elif why:
                kept[point] = why
            else:
                break
        return Retained(kept, removed[::-1])

    def _remove_one(self, point: RestorePoint) -> str | None:
        """None: it is gone. Else why it stays; "": because a newer generation has begun, which may need it."""
        catalog = self._catalog
        for _ in range(LOOKS_MAX):
            looked_s = self._monotonic()
            if catalog.newest_generation() != self._newest:
                return ""
            if catalog.storage.exists(catalog.pin_path(*point[:2])):
                return "pinned"
            if catalog.storage.exists(catalog.quarantine_path(*point[:2])):
                return "quarantined"
            if self._monotonic() - looked_s <= LOOKED_S_MAX:
                catalog.remove(point)
                self._points.pop(point[:2], None)
                self._facts.pop(point[:2], None)
                self._untold.append(point)
                return None
        return "storage is too slow to be sure that nobody needs it"


def _metrics(found: Any) -> tuple[tuple[str, float], ...]:
    """The numbers among them; what was not finite stands there as text."""
    if not isinstance(found, dict):
        return ()
    return tuple(
        (name, float(value))
        for name, value in found.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    )
