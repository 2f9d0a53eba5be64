"""The keeper of one rank of a gang: its part of what all ranks save, and of what all of them restore.

Which state is restored is agreed on by the gang (leader.py); here it is looked for, in this machine's memory and in
storage. A checkpoint is committed by the leader's keeper, when every rank has said that its part is in storage.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from orch.model.generation import Generation
from orch_workers import poison
from orch_workers.checkpoint import reader, writer
from orch_workers.checkpoint.catalog import RestorePoint
from orch_workers.checkpoint.chain import Chain, tuple_of
from orch_workers.checkpoint.errors import (
    CheckpointError,
    Damaged,
    SnapshotChanged,
    StorageRefused,
    StorageUnavailable,
)
from orch_workers.checkpoint.recutting import Place, is_divided_so, places_of, recut
from orch_workers.checkpoint.staging import RESTORE_INDEX
from orch_workers.gang.sharing import Sharing, Where
from orch_workers.gang.words import Point, Report, Rollback
from orch_workers.keeper import COMMITTED_REMEMBERED, Keeper
from orch_workers.numbers import Stretch
from orch_workers.pacing import Pacing
from orch_workers.prepared import Filled, Prepared
from orch_workers.training.slots import Slot

if TYPE_CHECKING:
    from orch_workers.checkpoint.staging import Snapshot
    from orch_workers.gang.words import Proposal

WRITTEN_MAX = 8
"""Parts remembered that this rank has brought into storage, the newest."""
AGREE_LIMIT_S = 30.0
"""How long a rank waits to be told what of a step it is to write; then it writes all that it holds."""
AGREE_HURRIED_S = 2.0
"""The same while somebody waits for the last snapshot to be in storage."""
AGREE_NEWER_S = 5.0
"""The same while a newer snapshot waits behind this one."""


def where_of(point: Point) -> Where:
    return tuple_of(point.generation), point.step


def point_of(where: Where) -> Point:
    return Point(generation=Generation(*where[0]), step=where[1])


def stretch_of(rollback: Rollback) -> Stretch:
    return Stretch(rollback.good_step, rollback.bad_step, rollback.until_step, rollback.reason)


class GangPacing(Pacing):
    """What ranks decide apart would not be the same step: `max_overhead` puts off saves by the clock only."""

    def admits(self, reason: str, since_saved_s: float) -> bool:
        return True


class GangKeeper(Keeper):
    """Thread-safe. `changed` is called when there is something new to report."""

    def __init__(self, *arguments: Any, changed: Callable[[], None], sharing: Sharing, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.pacing = GangPacing.of(self._config)
        self._changed, self._sharing = changed, sharing
        self._written: list[Where] = []
        self._blocked: dict[Where, float | None] = {}
        self._settled = Generation(0, 0)
        self._newest_commit: Where | None = None
        self._rolled_back: Rollback | None = None
        self._left_behind: set[Where] = set()
        """Snapshots that were taken in the stretch of a rollback."""

    # set-up

    def open(self) -> None:
        """The chain is told with what is to be restored, so storage need not be asked for it."""
        self._chain = self._staging.load_lineage()
        self._writer.start()

    def _queue_newest(self, info: Mapping[str, Any]) -> None:
        """What goes to storage beside what is saved for it is the gang's to agree on."""

    def _announce(self, chain: Chain, source: str) -> None:
        if self._config.rank == 0:  # it would be the same from each
            super()._announce(chain, source)

    # what is reported

    def holds(self) -> tuple[Point, ...]:
        with self._lock:
            return tuple(point_of((s.generation, s.step)) for s in self._staging.snapshots())

    def written(self) -> tuple[Point, ...]:
        with self._lock:
            return tuple(point_of(where) for where in self._written)

    def lineage(self) -> dict[str, Any] | None:
        with self._lock:
            return None if self._chain is None else self._chain.to_json()

    @property
    def newest_commit(self) -> Point | None:
        """Last one that was committed, as far as this rank knows."""
        with self._lock:
            return None if self._newest_commit is None else point_of(self._newest_commit)

    # what is told

    def heard(self, report: Report) -> None:
        """The leader's own, or another rank's."""

    def committed(self, point: Point) -> None:
        """The leader has committed it."""
        with self._lock:
            self._remember_commit(where_of(point))

    def _remember_commit(self, where: Where) -> None:
        self._newest_commit = where
        self._committed_step = max(self._committed_step, where[1])
        self._committed = set(sorted({*self._committed, where})[-COMMITTED_REMEMBERED:])
        self._lock.notify_all()

    # every rank prepares what is proposed

    def start_generation(self, generation: Generation) -> None:
        self.pacing.started()
        with self._lock:
            self._generation = tuple_of(generation)

    def propose(self, proposal: Proposal, answer: Callable[[str], None]) -> None:
        """Answers with "" when this rank can begin with it, else why not. May wait for storage."""

        def prepare() -> None:
            try:
                why = self._prepare_point(proposal)
            except InterruptedError:
                return  # a stop: nobody waits for the answer any more
            except (CheckpointError, StorageRefused, OSError, ValueError) as error:
                why = f"{error}"
            answer(why)

        self._preparer.submit(prepare)

    def _prepare_point(self, proposal: Proposal) -> str:
        where = None if proposal.point is None else where_of(proposal.point)
        with self._lock:
            if self._prepared is not None:
                self._staging.release(self._prepared.index, "restore")
                self._prepared = None
            memory = next((s for s in self._staging.snapshots() if (s.generation, s.step) == where), None)
            found = None if memory is None else Prepared.of(memory, "memory")
        if where is not None and found is None:
            point = RestorePoint(*where)
            try:
                found = self._patiently_look(point)
            except Damaged as error:
                self.catalog.quarantine(point, str(error), needs_version=error.needs_version)
                self._note(f"the checkpoint of step {point.step} is damaged and in quarantine: {error}")
                return str(error)
        with self._lock:
            if found is not None:
                self._staging.hold(found.index, "restore")
            self._prepared, self._next = found, Chain.from_json(proposal.chain)
            # What was read from storage is there, and may be of another number of ranks.
            if memory is not None and memory.index != RESTORE_INDEX and self._is_unwritten(memory):
                self._queue(memory, {"reason": "restored"})
        return ""

    def _patiently_look(self, point: RestorePoint) -> Prepared:
        def look() -> Prepared:
            saved_by = self.catalog.manifest(point).world_size
            if saved_by == self._config.world_size:
                return self._read(point, None)
            # What of it this rank is to hold its process will say: until then only what every rank will need.
            recut(self.catalog, point, self._config.rank, self._config.world_size)
            if self._config.rank == 0:
                self._note(
                    f"step {point.step} was saved by {saved_by} ranks and is restored on {self._config.world_size}"
                )
            return Prepared("", "storage", point.generation, point.step, RESTORE_INDEX)

        found = self._patiently(look, None)
        assert found is not None
        return found

    def _read(self, point: RestorePoint, places: Sequence[Place] | None) -> Prepared:
        config = self._config
        reader.restore(
            self.catalog,
            point,
            config.rank,
            self._make_restore_file,
            world_size=config.world_size,
            places=places,
        )
        with self._lock:
            return Prepared.of(self._staging.restored(), "storage")

    def fitted(self, found: Prepared | None, told: object) -> Prepared | None:
        """What a process that holds tensors in these places loads: what was prepared, or the same state cut anew, out
        of storage. InterruptedError: it turned out to be damaged, and another one is looked for.
        """
        if found is None or (found.path and is_divided_so(found.path, told)):
            return found
        point = RestorePoint(found.generation, found.step)

        def read() -> Prepared:
            if not self.storage.exists(self.catalog.manifest_path(*point[:2])):
                # In the memory of all ranks, and on its way: each needs some of what the others hold.
                raise StorageUnavailable(f"step {point.step} is divided anew as soon as it is in storage")
            return self._read(point, places_of(told))

        try:
            made = self._patiently(read, None)
        except Damaged as error:
            self.catalog.quarantine(point, str(error), needs_version=error.needs_version)
            self._note(f"the checkpoint of step {point.step} is damaged and in quarantine: {error}")
            raise InterruptedError(str(error)) from error
        assert made is not None
        with self._lock:
            self._staging.release(found.index, "restore")
            self._staging.hold(made.index, "restore")
            self._prepared = made
        return made

    def leave_behind(self, rollback: Rollback) -> None:
        """What lies in memory of that stretch is forgotten, and what is on its way is not said to be in storage."""
        stretch = stretch_of(rollback)
        with self._lock:
            bad = [snapshot for snapshot in self._staging.snapshots() if poison.in_memory(stretch, snapshot)]
            self._filled = [filled for filled in self._filled if filled.snapshot not in bad]
            self._staging.forget(bad)
            self._left_behind |= {(snapshot.generation, snapshot.step) for snapshot in bad}
            self._written = [where for where in self._written if not self._is_left_behind(where, rollback)]
            self._rolled_back = rollback
            self._committed_step = min(self._committed_step, stretch.bad_step - 1)

    def _is_left_behind(self, where: Where, rollback: Rollback | None) -> bool:
        if where in self._left_behind:
            return True
        return rollback is not None and (
            where[0] < tuple_of(rollback.generation) and where[1] >= rollback.bad_step
        )

    def _is_unwritten(self, snapshot: Snapshot) -> bool:
        where = (snapshot.generation, snapshot.step)
        coming = {(f.snapshot.generation, f.snapshot.step) for f in (*self._filled, self._writing) if f}
        return where not in coming | self._committed | set(self._written)

    def settle(self, generation: Generation, nothing: bool) -> None:
        """Every rank can begin with what was proposed last: the process of `generation` may load it."""
        with self._lock:
            if generation <= self._settled:
                return
            self._settled = generation
            self._lock.notify_all()
        if nothing and self._config.rank == 0:
            self._note("starts from nothing: this job has no checkpoint yet")

    def prepared(self) -> Prepared | None:
        """Waits until the gang has agreed. InterruptedError when the process that asks is not the newest any more."""
        with self._lock:
            asked = self._generation
            self._lock.wait_for(
                lambda: self._closed or self._generation != asked or tuple_of(self._settled) == asked
            )
            if self._closed or self._generation != asked:
                raise InterruptedError("the gang begins anew")
            return self._prepared

    def process_gone(self, *, well: bool = False) -> None:
        with self._lock:
            self._staging.abandon()

    # saving

    def _is_wanted(self, snapshot: Snapshot) -> bool:
        """Also asked of the chain that begins just now: another rank may have written it down already."""
        with self._lock:
            coming = self._next is None or self._next.admits(snapshot.generation, snapshot.step)
            return coming and super()._is_wanted(snapshot)

    def _write_once(self, filled: Filled) -> None:
        chain = self._chain
        assert chain is not None
        self._begin(chain)
        where = (filled.snapshot.generation, filled.snapshot.step)
        slot = Slot(filled.snapshot.path)
        try:
            writer.write_rank(
                self.catalog,
                slot,
                rank=self._config.rank,
                world_size=self._config.world_size,
                agreement=self._sharing.about(where, self._waits_for_others),
            )
        finally:
            slot.close()
        with self._lock:
            if self._is_left_behind(where, self._rolled_back):
                return
            self._written = [*(known for known in self._written if known != where), where][-WRITTEN_MAX:]
            self._blocked[where] = filled.info.get("blocked_s")
            while len(self._blocked) > WRITTEN_MAX:
                del self._blocked[next(iter(self._blocked))]
        self._changed()

    def _waits_for_others(self, waited_s: float) -> bool:
        """Whether to wait longer until all ranks have told what they hold. SnapshotChanged: this rank is put away.

        A newer snapshot that waits is no reason to leave this one out: a rank whose storage is slow is still busy with
        an older one, comes to this one later, and without this rank's part it could not be committed.
        """
        with self._lock:
            if self._closed:
                raise SnapshotChanged("put away while it waited for the other ranks")
            limit_s = AGREE_HURRIED_S if self._hurry else AGREE_NEWER_S if self._filled else AGREE_LIMIT_S
            return waited_s <= limit_s
