"""Keeps what the script itself writes: versions of its files instead of snapshots, on the same chain, with the same
commits, retention and quarantine. A version's number takes the place of the step.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from orch.model.generation import Generation
from orch.model.units import describe_size
from orch_policies.interval import SECONDS_DEFAULT
from orch_workers.checkpoint import reader
from orch_workers.checkpoint.catalog import RestorePoint
from orch_workers.checkpoint.errors import CheckpointError, StorageError
from orch_workers.checkpoint.staging import RESTORE_INDEX, Snapshot, Staging
from orch_workers.checkpoint.writer import Committed
from orch_workers.config import WorkerConfig
from orch_workers.files.collecting import Collector, Ending, Outcome
from orch_workers.files.fallback import Start, falls_back
from orch_workers.files.fetching import fetch
from orch_workers.files.lines import LineMetrics
from orch_workers.files.local import Local, Version
from orch_workers.files.looking import CHECKPOINT_FOLDER, Look
from orch_workers.files.storing import commit
from orch_workers.files.watching import Watch
from orch_workers.keeper import Keeper
from orch_workers.prepared import Filled, Prepared
from orch_workers.speaking import Launched
from orch_workers.training.page import Progress

if TYPE_CHECKING:
    from orch_workers.checkpoint.reader import Found

FALLBACK_DRAIN_S = 20.0
"""How long a version that a start could not use may take into storage before the next start."""
KEPT_TWICE = (
    "this job has `checkpoint.files`, so orch keeps what its script writes itself, and the script calls "
    "orch.training() as well: remove one of the two"
)


class FilesKeeper(Keeper):
    """Thread-safe. See Keeper; `attach` comes before the first start."""

    def __init__(self, config: WorkerConfig, secrets: Mapping[str, str], **told: Any) -> None:
        """`told`: whom a Keeper tells what, see there."""
        self._local = Local(config.paths.state / "files")
        super().__init__(config, secrets, **told)
        self._lines = LineMetrics(config.paths.log, config.metrics)
        self._damaged: set[str] = set()
        self._start: Start | None = None
        self._watch: Watch | None = None
        self._collector: Collector | None = None
        self._launcher: Launched | None = None
        self._queued: Version | None = None
        """The newest of this start that was given to storage."""
        self._taken_ns = 0
        self._began_s = 0.0
        self._is_first = True
        self._hint_s, self._hinted = 0.0, False

    def _make_staging(self) -> Staging:
        return cast("Staging", self._local)  # as far as a keeper uses one that no training process fills

    def attach(self, launcher: Launched) -> None:
        self._launcher = launcher
        is_own = self._config.code_digest is not None  # a folder in which the job runs in place is the user's
        aside = self._config.paths.state / "aside" if is_own else None
        self._collector = Collector(launcher.workdir, self._config.files, self._local, self._lock, aside)
        self._collector.follow(launcher.pids)

    # before a start

    def start_generation(self, generation: Generation) -> None:
        """Puts the newest version in its place; returns when it is there, and the command may be started."""
        assert self._launcher is not None
        assert self._collector is not None
        (self._launcher.workdir / CHECKPOINT_FOLDER).mkdir(exist_ok=True)
        is_first, self._is_first = self._is_first, False
        if is_first and self._memory_is_newest:
            self._rescue()
        began_s = time.monotonic()
        super().start_generation(generation)
        found = super().prepared()
        if found is not None:
            with self._lock:
                snapshot = next(s for s in self._local.snapshots() if s.index == found.index)
            aside = self._collector.put(snapshot, str(generation))
            if aside:
                self._note(
                    f"{', '.join(aside[:3])}{' …' if len(aside) > 3 else ''}: left by a start that did not come to its "
                    f"end, no part of version {found.step}; set aside"
                )
        self.restored(loaded=found is not None)
        self._start = Start(found)
        if found is None and is_first:
            self._take_first()
        self._queued, self._taken_ns = None, time.monotonic_ns()
        self._began_s = self._began_s or time.monotonic()
        source = "none" if found is None else {"memory": "disk"}.get(found.source, found.source)
        self._launcher.tell_restored(self._start.number, source, time.monotonic() - began_s)
        self._lines.begin()
        self._watch = Watch(self._collector.looker, self)

    def prepared(self) -> Prepared | None:
        """Asked by a script that calls `orch.training` in a job whose files are kept."""
        raise CheckpointError(KEPT_TWICE)

    def _take_first(self) -> None:
        """What lies in the working folder before the first start, shipped with it, is the first version."""
        assert self._collector is not None
        assert self._start is not None
        look = self._collector.looker.look()
        if not look.files:
            return
        outcome = self._collector.take(look, self._generation, 1, {})
        if outcome.snapshot is not None:
            self._start.number = 1
        elif outcome.problem:
            self._note(f"what lies in the working folder is not taken as a version: {outcome.problem}")
            self._collector.before = dict(look.files)

    def _rescue(self) -> None:
        """What the script wrote last under an agent that died here, if it is known to be whole."""
        with self._lock:
            newest = None if self._chain is None else self._local.newest_ready(self._chain)
        if newest is None or self._chain is None or self._collector is None:
            return
        self._collector.was(self._local.version(newest), newest)
        self._take_last(self._chain.generation, newest.step + 1, Ending(well=False, was_settled=False))

    def _find_stored(self, memory_step: int) -> Found[Snapshot] | None:
        def bring(point: RestorePoint) -> Snapshot:
            with self._lock:
                index, folder = self._local.make(fetched=True)
            try:
                version = fetch(self.catalog, point, folder, self._damaged)
            except BaseException:
                with self._lock:
                    self._local.drop(index)
                raise
            with self._lock:
                return self._local.ready(index, version)

        return reader.find_and_read(
            self.catalog, bring, newer_than=memory_step, committed_before=self._committed_step > 0
        )

    # while it runs (called by the watching thread)

    def take_version(self, look: Look) -> Outcome:
        assert self._start is not None
        assert self._collector is not None
        outcome = self._collector.take(look, self._generation, self._start.number + 1, self._lines.values)
        if outcome.snapshot is not None:
            self._took(self._start, outcome.snapshot)
            self._queue_when_due()
        return outcome

    def each_look(self, look: Look) -> None:
        assert self._start is not None
        self._tell_metrics(self._start)
        self._queue_when_due()
        if not self._start.number and not self._in_first_interval:
            self._hint(look)

    def told(self, message: str) -> None:
        self._note(message)

    def _tell_metrics(self, start: Start) -> None:
        """What the log says by now."""
        if values := self._lines.read():
            start.lines = self._lines.matches
            assert self._launcher is not None
            self._launcher.tell_metrics(start.number, values)

    def _took(self, start: Start, snapshot: Snapshot) -> None:
        start.number, start.versions = snapshot.step, start.versions + 1
        self._taken_ns = time.monotonic_ns()

    def _queue_when_due(self) -> None:
        """The first of a start at once, then one an interval: each is safe on this machine all the same."""
        now_s = time.monotonic()
        with self._lock:
            newest = None if self._chain is None else self._local.newest_ready(self._chain)
            if newest is None or newest.index == RESTORE_INDEX or newest.generation != self._generation:
                return
            version = self._local.version(newest)
            last = self._queued
            if last is not None and (last == version or not self._is_due(last, version, now_s)):
                return
            self._queued, self.saved_s, self.saved_step = version, now_s, newest.step
            self._queue(newest, self._info(newest, "interval"))

    def _is_due(self, last: Version, now: Version, now_s: float) -> bool:
        """Steps and epochs are the script's own, where its files tell them."""
        every = self.pacing.every
        counted = ((every.steps, last.step, now.step), (every.epochs, last.epoch, now.epoch))
        return now_s - self.saved_s >= self._every_s or any(
            after and None not in (before, present) and (present or 0) - (before or 0) >= after
            for after, before, present in counted
        )

    def _info(self, snapshot: Snapshot, reason: str) -> dict[str, Any]:
        return {"reason": reason, "epoch": self._local.version(snapshot).epoch}

    @property
    def _every_s(self) -> float:
        return self.pacing.every.seconds or SECONDS_DEFAULT

    @property
    def _in_first_interval(self) -> bool:
        return not self._began_s or time.monotonic() - self._began_s < self._every_s

    def _hint(self, look: Look) -> None:
        """Nothing is kept: said after one interval, and again once it is known what the job writes instead."""
        now_s = time.monotonic()
        if self._hinted or now_s < self._hint_s:
            return
        assert self._collector is not None
        self._hint_s = now_s + self._every_s
        hints = self._collector.looker.hints(self._config.paths.log)
        self._hinted = bool(hints)
        self._note(self._nothing_yet(look, hints))

    def _nothing_yet(self, look: Look, hints: list[tuple[str, int]]) -> str:
        named = ", ".join(self._config.files)
        if look.files:
            what = f"no version of {named} could be taken yet"
            if look.writing:
                what += f": {', '.join(sorted(look.writing)[:3])} is open for writing all the time"
        else:
            what = f"nothing matches {named} (checkpoint.files)"
        written = "; ".join(f"{path} ({describe_size(size)})" for path, size in hints)
        return what + (f"; the job has written {written}" if written else "") + ": nothing keeps its state"

    # after it

    def process_gone(self, *, well: bool = False) -> None:
        if self._watch is not None and self._start is not None:
            watch, self._watch, start = self._watch, None, self._start
            watch.stop()
            self._tell_metrics(start)
            settled = watch.settling.settled
            snapshot = self._take_last(
                self._generation, start.number + 1, Ending(well, was_settled=False), settled
            )
            if snapshot is not None:
                self._took(start, snapshot)
        super().process_gone(well=well)

    def _take_last(
        self,
        generation: tuple[int, int],
        number: int,
        ending: Ending,
        settled: Mapping[str, Any] | None = None,
    ) -> Snapshot | None:
        """A version of what the script left behind, if it has changed and is known to be whole."""
        assert self._collector is not None
        try:
            look = self._collector.looker.look()
            if not look.files or look.files == self._collector.before:
                return None
            ending = ending._replace(was_settled=look.files == settled)
            outcome = self._collector.take(look, generation, number, self._lines.values, ending)
        except OSError as error:
            self._note(f"no copy of the files that it wrote last could be taken: {error}")
            return None
        if outcome.problem:
            self._note(f"what it wrote last is not taken as version {number}: {outcome.problem}")
        if outcome.is_broken and self._collector.version is None:
            names = self._collector.clear(look, str(Generation(*self._generation)))
            self._note(f"{', '.join(names[:3])}: set aside, for there is no version to put in its place")
        return outcome.snapshot

    def failed_at(self, step: int | None, code: int | None, signal: int | None) -> int | None:
        """Falls back one version when the start died of the one it was given, as far as anybody can tell."""
        start, self.left_behind = self._start, ()
        if start is None:
            return step
        if start.found is None or not falls_back(start, code, signal):
            return start.number
        if not self._has_older(start.found):
            return start.number
        how = f"exit code {code}" if signal is None else f"signal {signal}"
        why = f"a start from it died ({how}) before it had made a version of its own"
        self._leave_behind(start.found, f"{why}, so its script seems unable to use it")
        self._note(
            f"version {start.found.step} is left behind: {why}; the next start falls back to the one before "
            f"(both are kept)"
        )
        return None

    def _has_older(self, found: Prepared) -> bool:
        place = (found.step, found.generation)
        with self._lock:
            chain = self._chain
            local = self._local.snapshots()
        if chain is not None and any(
            (s.step, s.generation) < place and chain.admits(s.generation, s.step) for s in local
        ):
            return True
        points = self._patiently(self.catalog.restore_points, None) or []
        return any((point.step, point.generation) < place for point in points)

    def _leave_behind(self, found: Prepared, reason: str) -> None:
        """In storage it is marked, as a damaged one is; here it is kept as well, and not restored again."""
        self.drain(FALLBACK_DRAIN_S)
        point = RestorePoint(found.generation, found.step)
        self.left_behind = ((str(Generation(*found.generation)), found.step, reason),)

        def mark() -> None:
            if self.catalog.storage.exists(self.catalog.manifest_path(*point[:2])):
                self.catalog.quarantine(point, reason)

        try:
            self._patiently(mark, None)
        except (InterruptedError, StorageError) as error:
            self._note(f"version {found.step} could not be marked in storage: {error}")
        with self._lock:
            self._committed_step = min(self._committed_step, found.step - 1)
            self._local.leave_behind(found.index, reason)

    # writing

    def _commit(self, filled: Filled) -> Committed:
        with self._lock:
            version = self._local.version(filled.snapshot)
        return commit(
            self.catalog,
            version,
            filled.snapshot,
            code_digest=self._config.code_digest,
            distrusted=self._damaged,
        )

    def close(self) -> None:
        if self._watch is not None:
            self._watch.stop()
        super().close()

    # telling

    def progress(self) -> Progress | None:
        start = self._start
        if start is None:
            return None
        epoch = self._collector.version.epoch if self._collector and self._collector.version else None
        return Progress(start.number, self._taken_ns, epoch or 0, 0, 0)

    def beat(self) -> Progress | None:
        """A number that rises with every sign of progress; None where the script gives none."""
        start = self._start
        if start is None or not (self._config.metrics or start.versions):
            return None
        return Progress(start.restored + start.versions + start.lines, time.monotonic_ns(), 0, 0, 0)

    def status(self) -> dict[str, Any]:
        start = self._start
        is_kept = start is not None and (start.number > 0 or self._in_first_interval)
        return {**super().status(), "aware": is_kept}
