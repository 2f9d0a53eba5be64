"""A whole life of checkpoints under the recorder, and what must hold of whatever a crash leaves of it."""

from __future__ import annotations

import ast
import os
import shutil
import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orch_policies.retention import Rules
from orch_workers.checkpoint import catalog as catalogs
from orch_workers.checkpoint import commit, find_and_restore
from orch_workers.checkpoint import format as checkpoint_format
from orch_workers.checkpoint.catalog import Catalog, RestorePoint
from orch_workers.checkpoint.errors import Damaged
from orch_workers.checkpoint.local import LocalStorage
from orch_workers.checkpoint.objects import Storage
from orch_workers.checkpoint.reader import restore
from orch_workers.checkpoint.s3 import S3Storage
from orch_workers.checkpoint.writer import write_rank
from support import snapshots
from support.crashing import Recorder, Tree, read_tree, write_tree

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterable

    import pytest

JOB = "digits-1a2b"
ROOT = "disk/prefix"
"""The storage's own folder, made by the first save, below the recorder's."""
SHARD_BYTES = 400
KEPT = Rules(last=2)
A, B, C, NEXT = (1, 1), (1, 2), (2, 1), (9, 1)
Place = tuple[tuple[int, int], int]


def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several shards in a small snapshot, and nothing is too young to be swept."""
    for kind in (Storage, LocalStorage, S3Storage):
        monkeypatch.setattr(kind, "shard_bytes", SHARD_BYTES)
        # One after the other: the same operations in every run, and no time for threads.
        monkeypatch.setattr(kind, "writes_at_once", 1)
        monkeypatch.setattr(kind, "reads_at_once", 1)
    monkeypatch.setattr(checkpoint_format, "SHARD_BYTES_TARGET", SHARD_BYTES)
    monkeypatch.setattr(catalogs, "TEMPORARY_AGE_S", -10.0)


def state_of(generation: tuple[int, int], step: int) -> snapshots.State:
    return snapshots.state(step * 1000 + generation[0] * 10 + generation[1], 40)


@dataclass
class Facts:
    """What had been promised by the moment of the crash."""

    begun: tuple[int, int] | None = None
    committed: set[Place] = field(default_factory=set)
    released: set[Place] = field(default_factory=set)
    """May be gone, or going."""
    damaged: set[Place] = field(default_factory=set)


class Life:
    """What agents do with a storage, told to `mark`. `slots`: where snapshots lie, outside the recorder's folder."""

    def __init__(self, storage: Storage, slots: Path, mark: Callable[..., None]) -> None:
        self.catalog, self._slots, self.mark = Catalog(storage, JOB), slots, mark

    def begin(self, generation: tuple[int, int], parent: Place | None = None) -> None:
        self.catalog.begin_generation(generation, *(parent or ()))
        self.mark("begun", generation)

    def save(self, generation: tuple[int, int], step: int) -> None:
        slot = self.snapshot(generation, step)
        commit(self.catalog, slot)
        slot.close()
        self.mark("committed", (generation, step))

    def abandon(self, generation: tuple[int, int], step: int) -> None:
        """Its parts are written, and then the agent dies."""
        slot = self.snapshot(generation, step)
        write_rank(self.catalog, slot, rank=0, world_size=1)
        slot.close()

    def snapshot(self, generation: tuple[int, int], step: int) -> snapshots.Slot:
        return snapshots.make(
            self._slots / "slot", state_of(generation, step), generation=generation, step=step
        )

    def retain(self, *released: Place) -> None:
        """`released` are the ones that the rules let go."""
        self.mark("released", *released)
        removed = self.catalog.retain(KEPT).removed
        assert {p[:2] for p in removed} <= set(released), f"{removed} for {released}"

    def sweep(self, *released: Place) -> None:
        self.mark("released", *released)
        self.catalog.sweep()


def whole_life(life: Life, spoil: Callable[[Any, bytes], None]) -> None:
    """Three generations; saves, retentions, a damage, two forks, an abandoned commit, sweeps."""
    life.begin(A)
    life.save(A, 10)
    life.save(A, 20)
    life.save(A, 30)
    life.retain((A, 10))
    shard = life.catalog.shard_path(A, 30, 0, 0)
    data = bytearray(life.catalog.storage.read(shard))
    data[8 + int.from_bytes(data[:8], "little")] ^= 1  # the first byte of the first tensor
    where = life.catalog.storage
    spoil(where.root / shard if isinstance(where, LocalStorage) else shard, bytes(data))
    life.mark("damaged", (A, 30))
    life.catalog.quarantine(RestorePoint(A, 30), "a test has damaged it")
    life.begin(B, (A, 20))
    life.save(B, 25)
    life.save(B, 27)
    life.abandon(B, 28)
    life.retain((A, 20))
    life.sweep()
    life.begin(C, (B, 25))
    life.save(C, 26)
    life.retain()
    life.sweep((B, 27))
    life.save(C, 40)
    life.retain((B, 25))


def facts_at(marks: Iterable[tuple[int, tuple[Any, ...]]], count: int) -> Facts:
    facts = Facts()
    for at, (kind, *what) in marks:
        if at > count:
            break
        if kind == "begun":
            facts.begun = what[0]
        else:
            getattr(facts, kind).update(what)
    return facts


def two_saves_and_a_retention(life: Life, recorder: Recorder) -> None:
    life.begin(A)
    life.save(A, 10)
    life.save(A, 20)
    life.save(A, 30)
    life.retain((A, 10))


def killed(folder: Path, act: Callable[[Life, Recorder], None], at: int) -> Facts | None:
    """A process that SIGKILLs itself before its operation `at`, and what had been promised by then; None: it ended
    before. What it leaves is below `folder / "recorded"`.
    """
    told = folder / "told"
    pid = os.fork()
    if pid == 0:
        try:
            with told.open("w", buffering=1) as log:
                record(folder, act, kill_at=at, tell=lambda what: log.write(repr(what) + "\n"))
        finally:
            os._exit(0)
    _, status = os.waitpid(pid, 0)
    marks = [ast.literal_eval(line) for line in told.read_text().splitlines()]
    if not os.WIFSIGNALED(status):
        assert os.WEXITSTATUS(status) == 0
        return None
    assert os.WTERMSIG(status) == signal.SIGKILL
    return facts_at(((0, mark) for mark in marks), 0)


def record(
    folder: Path,
    act: Callable[[Life, Recorder], None],
    *,
    kill_at: int | None = None,
    tell: Callable[[tuple[Any, ...]], object] = lambda _: None,
) -> Recorder:
    """What `act` does to a storage below `folder`, which may hold something already."""
    disk = folder / "recorded"
    disk.mkdir(exist_ok=True)
    (folder / "slots").mkdir(exist_ok=True)
    recorder = Recorder(disk, kill_at=kill_at)

    def mark(*what: Any) -> None:
        recorder.mark(*what)
        tell(what)

    with recorder:
        act(Life(LocalStorage(disk / ROOT), folder / "slots", mark), recorder)
    return recorder


def power_loss_after_take_over(
    first: Recorder, count: int, folder: Path, rng: random.Random, check: Check, states: int
) -> None:
    """`two_saves_and_a_retention` is killed before operation `count`, the next agent commits the same snapshot, and
    then the power is lost.
    """
    model = first.model(count)
    shutil.rmtree(folder / "recorded")
    write_tree(model.visible(), folder / "recorded")
    facts = facts_at(first.marks, count)
    step = next((step for step in (10, 20, 30) if (A, step) not in facts.committed), 30)

    def take_over(life: Life, _: Recorder) -> None:
        life.begin(A)
        life.save(A, step)
        life.retain((A, 10), (A, 20))
        life.sweep()

    for op in record(folder, take_over).ops:
        model.apply(op)
    assert model.visible() == read_tree(folder / "recorded")
    facts.committed.add((A, step))
    facts.released |= {(A, 10)} if step == 30 else set()
    for tree in model.after_power_loss(rng, states):
        check(tree, facts, f"killed before operation {count}, power lost after the next save")


class Check:
    """Opens what a crash has left as the next agent does, in a folder of its own in memory."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(exist_ok=True)
        (folder / "slots").mkdir(exist_ok=True)
        self._seen: set[object] = set()
        self.looked_at = 0

    def __call__(
        self, tree: Tree, facts: Facts, what: str, late: Callable[[Storage], None] | None = None
    ) -> None:
        """`late`: what lands after the next agent has gone on."""
        key = (frozenset(tree.items()), facts.begun, frozenset(facts.committed - facts.released))
        if key in self._seen and late is None:
            return
        self._seen.add(key)
        self.looked_at += 1
        disk = self._folder / "disk"
        shutil.rmtree(disk, ignore_errors=True)
        write_tree(tree, disk)
        try:
            storage = LocalStorage(disk / ROOT)
            self._look(storage, facts)
            if late is not None:
                late(storage)
                self._still_the_newest(Catalog(storage, JOB), facts)
        except Exception as error:
            names = "\n".join(f"  {path}" for path, content in sorted(tree.items()) if content is not None)
            raise AssertionError(f"{what}: {type(error).__name__}: {error}\n{names}") from error

    def _look(self, storage: Storage, facts: Facts) -> None:
        catalog = Catalog(storage, JOB)
        chain = catalog.chain()
        assert facts.begun is None or (chain is not None and chain.generation >= facts.begun)
        points = [p[:2] for p in catalog.restore_points()]
        owed = facts.committed - facts.released - facts.damaged
        lost = {place for place in owed if chain is None or chain.admits(*place)} - set(points)
        assert not lost, f"committed, and lost: {sorted(lost)}"
        for place in points:
            self._whole(catalog, place, facts)
        found = find_and_restore(catalog, 0, self._folder / "restored")
        usable = [place for place in points if place not in facts.damaged]
        newest = max(usable, key=lambda place: (place[1], place[0]), default=None)
        assert (found and found.point[:2]) == newest, f"restored {found and found.point}, newest is {newest}"
        self._go_on(catalog, newest, facts)

    def _whole(self, catalog: Catalog, place: Place, facts: Facts) -> None:
        try:
            restore(catalog, RestorePoint(*place), 0, self._folder / "restored")
        except Damaged:
            if place not in facts.damaged:
                raise
            return
        found = snapshots.arrays_in(self._folder / "restored")
        assert found == snapshots.arrays_of(state_of(*place)), f"{place} is not what was saved"

    def _still_the_newest(self, catalog: Catalog, facts: Facts) -> None:
        found = find_and_restore(catalog, 0, self._folder / "restored")
        assert found is not None
        assert (found.point[:2], found.rejected) == ((NEXT, 1000), ())
        self._whole(catalog, (NEXT, 1000), facts)

    def _go_on(self, catalog: Catalog, newest: Place | None, facts: Facts) -> None:
        """The next writer saves, sweeps, and nothing is left that nobody needs."""
        life = Life(catalog.storage, self._folder / "slots", lambda *_: None)
        life.begin(NEXT, newest)
        life.save(NEXT, 1000)
        life.catalog.sweep()
        assert next(p[:2] for p in catalog.restore_points()) == (NEXT, 1000)
        self._whole(catalog, (NEXT, 1000), facts)
        if newest is not None:
            self._whole(catalog, newest, facts)
        left = unexplained(catalog)
        assert not left, f"nobody has swept {left}"


def unexplained(catalog: Catalog) -> list[str]:
    """Objects that no checkpoint needs, and whatever else lies in the storage's folder."""
    needed = set()
    for point in catalog.committed():
        needed |= {catalog.manifest_path(*point[:2]), catalog.quarantine_path(*point[:2])}
        manifest = catalog.manifest(point)
        for rank in manifest.ranks:
            needed.add(catalog.path(rank.path))
            needed |= {
                catalog.path(shard.path) for shard in catalog.rank_manifest(point, manifest, rank.rank).shards
            }
    needed |= {catalog.generation_path(generation) for generation in catalog.generations()}
    assert isinstance(catalog.storage, LocalStorage)
    root = catalog.storage.root
    found = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}
    return sorted(found - needed)
