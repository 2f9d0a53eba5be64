"""A training process played by the test, over a storage that fails."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orch_policies.restart import History
from orch_workers.checkpoint import Catalog, find_and_restore
from orch_workers.checkpoint.reader import restore
from support import snapshots
from support.server import wait_for
from support.workers import JOB, ROOM_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable

    from orch_workers.checkpoint import Storage
    from support.workers import Kept, Machine

LIMIT_S = 120.0
"""Where half of all calls fail, a commit takes several tries, each with its pauses."""
STEP_S = 0.01


class Training:
    """`straight`: the same storage without faults, for looking. `through(endpoint)`: where keepers go from now on."""

    def __init__(self, machine: Machine, straight: Storage, through: Callable[[str], None]) -> None:
        self.machine, self.straight, self.through = machine, straight, through
        self.catalog = Catalog(straight, JOB)
        self.step = self.saved_step = self.skipped = 0

    def start(self, attempt: int = 1) -> Kept:
        """An agent on a machine of its own that has restored what it found; `step` is where it goes on."""
        self.machine.moves_to(f"machine-{attempt}")
        known = History(highest_step=self.saved_step, committed_step=self.saved_step).to_dict()
        kept = self.machine.keeper(attempt, policy={"history": known} if self.saved_step else {}).open()
        found = kept.begin()
        self.step = 0 if found is None else found.step
        return kept

    def go_on(self, kept: Kept, until: Callable[[], bool]) -> None:
        """Steps, each saved when a slot is free, as training does; never waits for anything but its own work."""

        def one_step() -> bool:
            self.step += 1
            given = kept.keeper.acquire(ROOM_BYTES)
            if given is None:
                self.skipped += 1
            else:
                generation = (kept.generation.attempt, kept.generation.restart)
                snapshots.fill(
                    given.path, snapshots.state(self.step, 10), generation=generation, step=self.step
                )
                kept.keeper.saved(given.index, {"reason": "asked"})
                self.saved_step = self.step
            return until()

        wait_for("enough steps", one_step, LIMIT_S, STEP_S)

    def assert_newest_won(self, kept: Kept, *, tell: bool = True) -> None:
        """Storage is back: what was saved last is in it, and all that is in it is whole."""
        assert kept.keeper.drain(LIMIT_S), kept.keeper.status()["storage_trouble"]
        assert kept.superseded == []
        assert self.catalog.quarantined() == {}
        points = self.catalog.restore_points()
        assert points[0].step == self.saved_step
        told = {step for _, step in kept.committed}
        assert self.saved_step in told
        assert [step for _, step in kept.committed] == sorted(told)
        folder = self.machine.folder / "restored"
        for point in points:
            restore(self.catalog, point, 0, folder)
            assert snapshots.arrays_in(folder) == snapshots.arrays_of(snapshots.state(point.step, 10)), point
        found = find_and_restore(self.catalog, 0, folder)
        assert found is not None
        assert (found.point, found.rejected) == (points[0], ())
