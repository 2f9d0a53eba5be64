"""The keeper of a gang's leader: looks for what all ranks can begin with, and commits what all have saved."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from orch.model.generation import Generation
from orch_policies.gang import candidates
from orch_workers import poison
from orch_workers.checkpoint import reader, writer
from orch_workers.checkpoint.catalog import RestorePoint
from orch_workers.checkpoint.chain import Chain, tuple_of
from orch_workers.checkpoint.errors import Damaged, NotFound, StorageUnavailable, Superseded
from orch_workers.checkpoint.fencing import confirm
from orch_workers.gang.keeper import GangKeeper, point_of, stretch_of, where_of
from orch_workers.gang.leader import Candidate
from orch_workers.gang.sharing import Where
from orch_workers.gang.words import UP, End, Point, Report, Rollback
from orch_workers.keeper import COMMITTED_REMEMBERED, Keeper
from orch_workers.restoring import LISTS_MAX

COMMIT_RETRY_S = 0.5


class LeaderKeeper(GangKeeper):
    """Thread-safe."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._reports: dict[int, Report] = {}
        self._given_up: set[Where] = set()
        self._to_mark: list[Rollback] = []
        self._commits = threading.Condition()

    def open(self) -> None:
        """The leader finds the chain in storage as well; the others are told it with what they restore."""
        Keeper.open(self)
        threading.Thread(target=self._commit_all, name="commits", daemon=True).start()

    def heard(self, report: Report) -> None:
        """A rank's report, the leader's own too: a step may be complete now."""
        with self._commits:
            self._reports[report.rank] = report
            self._commits.notify_all()

    # what the next generation can begin with

    def find(
        self,
        generation: Generation,
        reports: Mapping[int, Report],
        refused: Sequence[Point],
        answer: Callable[[list[Candidate], bool], None],
        failed: Callable[[Exception], None],
    ) -> None:
        """Answers with the candidates, and whether storage was looked at, too."""

        def look() -> None:
            try:
                answer(*self._find(generation, reports, {where_of(point) for point in refused}))
            except Exception as error:
                failed(error)

        self._preparer.submit(look)

    def _find(
        self, generation: Generation, reports: Mapping[int, Report], refused: set[Where]
    ) -> tuple[list[Candidate], bool]:
        self._mark_what_is_bad()
        chain = self._newest_chain(reports)
        held = [{where_of(point) for point in report.holds} - refused for report in reports.values()]

        def admits(where: Where) -> bool:
            return chain is not None and chain.admits(*where)

        def merged(stored: Sequence[Where]) -> list[Where]:
            return candidates(held, stored, step_of=lambda where: where[1], admits=admits)

        common = merged(())
        trusted = self._memory_is_newest and not refused and bool(common)
        if trusted and common[0][1] >= self._committed_step:
            return self._as_candidates(common, chain, generation), False
        stored = self._patiently(self._storage_asked(chain, held, common, refused), None) or []
        found = merged([where for where in stored if where not in refused])
        if not found and not refused:
            reader.assert_nothing_was_there(self.catalog, [], committed_before=self._committed_step > 0)
            return [Candidate(None, Chain.root(tuple_of(generation)).to_json())], True
        return self._as_candidates(found, chain, generation), True

    def leave_behind(self, rollback: Rollback) -> None:
        super().leave_behind(rollback)
        with self._lock:
            self._to_mark.append(rollback)

    def mark_soon(self) -> None:
        """Nothing is looked for any more that would mark it first."""
        self._preparer.submit(self._mark_what_is_bad)

    def _mark_what_is_bad(self) -> None:
        """In storage, before anything is looked for there."""
        with self._lock:
            waiting = list(self._to_mark)
        for rollback in waiting:
            stretch = stretch_of(rollback)
            marked = self._patiently(partial(poison.mark, self.catalog, stretch, []), None) or []
            said = ", ".join(str(step) for _, step in marked)
            self._note(
                stretch.reason + (f"; the checkpoints of steps {said} are marked poisoned" if said else "")
            )
            with self._lock:
                self._to_mark.remove(rollback)

    def known_bad(self, bad_step: int) -> list[tuple[str, int]]:
        """Of what this agent knows to be committed."""
        with self._lock:
            return [
                (str(Generation(*place)), step) for place, step in sorted(self._committed) if step >= bad_step
            ]

    def _newest_chain(self, reports: Mapping[int, Report]) -> Chain | None:
        """Of all that this machine, storage and the other ranks know. One that another rank knows and storage does
        not has committed nothing yet, and still is the one that goes on.
        """
        known = [Chain.from_json(report.chain) for report in reports.values() if report.chain is not None]
        with self._lock:
            known += [] if self._chain is None else [self._chain]
            newest = max(known, key=lambda chain: chain.generation, default=None)
            self._chain = newest
        return newest

    def _storage_asked(
        self, chain: Chain | None, held: Sequence[set[Where]], common: Sequence[Where], refused: set[Where]
    ) -> Callable[[], list[Where]]:
        lists = 0

        def ask() -> list[Where]:
            nonlocal lists
            lists += 1
            if chain is not None:
                self._begin(chain)
            points = [point[:2] for point in reader.points_of(self.catalog)]
            newest = points[0][1] if points else -1
            if chain is not None:
                anywhere: set[Where] = set().union(*held)
                rest = [w for w in anywhere if w[1] > newest and w not in refused and chain.admits(*w)]
                points = [*(where for where in rest if self._completes(where)), *points]
            reach = max([step for _, step in (*points, *common)], default=0)
            if reach < self._committed_step and not refused and lists <= LISTS_MAX:
                raise StorageUnavailable(
                    f"step {self._committed_step} was committed, and storage lists nothing newer than step {reach}"
                )
            return sorted(points, key=lambda where: (where[1], where[0]), reverse=True)

        return ask

    def _completes(self, where: Where) -> bool:
        """Commits a step whose parts are all in storage, because the leader before this one died with the last word."""
        config = self._config
        try:
            done = writer.commit_step(
                self.catalog, *where, world_size=config.world_size, code_digest=config.code_digest
            )
        except (NotFound, Superseded, Damaged):
            return False
        with self._lock:
            self._remember_commit(where)
        self._tell(where[1], Generation(*where[0]), done.size_bytes, done.seconds_s, {})
        return True

    @staticmethod
    def _as_candidates(
        found: Sequence[Where], chain: Chain | None, generation: Generation
    ) -> list[Candidate]:
        assert chain is not None or not found
        return [
            Candidate(point_of(where), chain.fork(tuple_of(generation), *where).to_json())
            for where in found
            if chain is not None
        ]

    # committing: the leader alone

    def _commit_all(self) -> None:
        while not self._closed:
            with self._commits:
                complete = self._complete()
                if not complete:
                    self._commits.wait(COMMIT_RETRY_S)
                    continue
            for where in complete:
                if not self._commit_point(where):
                    self._pause_commits()
                    break

    def _pause_commits(self) -> None:
        with self._commits:
            self._commits.wait(COMMIT_RETRY_S)

    def _complete(self) -> list[Where]:
        """Steps of which every rank has said that its part is in storage, newest first, and not committed yet."""
        reports = [self._reports.get(rank) for rank in range(self._config.world_size)]
        if any(report is None for report in reports):
            return []
        parts = [{where_of(point) for point in report.written} for report in reports if report is not None]
        with self._lock:
            done = self._committed | self._given_up | self._left_behind
        return sorted(set.intersection(*parts) - done, key=lambda where: where[1], reverse=True)

    def _commit_point(self, where: Where) -> bool:
        """False: to be tried again."""
        config = self._config
        began_s = time.monotonic()
        try:
            done = writer.commit_step(
                self.catalog,
                *where,
                world_size=config.world_size,
                code_digest=config.code_digest,
                blocked_s=self._blocked.get(where),
            )
            with self._lock:
                own = (self._chain or Chain.root(self._generation)).generation
            confirm(self.catalog, *where, config.world_size, by=own)
        except Superseded as error:
            self._give_up(where)
            if self._admitted(where):
                self._superseded(str(error))
            return True
        except NotFound:
            self._give_up(where)  # its parts were removed: what came after it is there
            return True
        except Damaged as error:
            self._give_up(where)
            self._note(f"step {where[1]} cannot become a checkpoint: {error}")
            return True
        except Exception as error:
            # Storage's, or a fault of ours: neither may end the keeping of the state.
            self._set_trouble(f"step {where[1]} is not committed yet: {error}")
            return False
        self._set_trouble("")
        with self._lock:
            self._remember_commit(where)
        self._after_commit(where, done.size_bytes, time.monotonic() - began_s)
        return True

    def _give_up(self, where: Where) -> None:
        with self._lock:
            self._given_up = set(sorted({*self._given_up, where})[-COMMITTED_REMEMBERED:])

    def _admitted(self, where: Where) -> bool:
        with self._lock:
            chains = [chain for chain in (self._chain, self._next) if chain is not None]
            return all(chain.admits(*where) for chain in chains)

    def _after_commit(self, where: Where, size_bytes: int, seconds_s: float) -> None:
        removed = self._retainer.retain_after(RestorePoint(*where), self._note)
        with self._lock:
            own = (self._chain or Chain.root(self._generation)).generation
        if problem := self._sweeper.after(where[0], self._on_their_way(), own):
            self._note(problem)
        extra = {
            "blocked_s": self._blocked.get(where),
            "deleted": [[str(Generation(*point.generation)), point.step] for point in removed],
        }
        self._tell(where[1], Generation(*where[0]), size_bytes, seconds_s, extra)
        self._changed()

    def _on_their_way(self) -> list[Where]:
        """Of any rank: what it holds or has written may still become a checkpoint."""
        found = set(super()._on_their_way())
        with self._commits:
            for report in self._reports.values():
                found |= {where_of(point) for point in (*report.holds, *report.written)}
        return sorted(found)

    def drain(self, limit_s: float) -> bool:
        """Also until the newest of this rank's parts is committed, as long as the other ranks can have theirs."""
        deadline_s = time.monotonic() + limit_s
        if not super().drain(limit_s):
            return False
        while self._awaits_commit():
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                return False
            with self._commits:
                self._commits.wait(min(left_s, 0.05))
        return True

    def _awaits_commit(self) -> bool:
        with self._lock:
            newest = self._written[-1] if self._written else None
            if newest is None or newest in self._committed | self._given_up:
                return False
        with self._commits:
            reports = [self._reports.get(rank) for rank in range(1, self._config.world_size)]
        return all(report is not None and _may_write(report, newest) for report in reports)

    def close(self) -> None:
        super().close()
        with self._commits:
            self._commits.notify_all()


def known_bad(keeper: object, end: End) -> list[tuple[str, int]]:
    """Checkpoints of the stretch in which the loss was bad, as far as they are known."""
    if end.stretch is None or not isinstance(keeper, LeaderKeeper):
        return []
    return keeper.known_bad(end.stretch["bad_step"])


def _may_write(report: Report, where: Where) -> bool:
    """Whether this rank's part is in storage, or may still come there."""
    point = point_of(where)
    if point in report.written or point in report.holds:
        return True
    return report.phase == UP and report.step <= point.step
