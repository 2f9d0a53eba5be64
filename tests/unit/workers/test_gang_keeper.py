"""The keeper of one rank of a gang: what it brings into storage of what it holds."""

from __future__ import annotations

from orch_workers.gang import keeper as gang_keeper
from orch_workers.gang.sharing import Sharing
from support.server import wait_for
from support.workers import LIMIT_S


def test_a_step_that_others_come_to_late_is_written_though_a_newer_one_waits(machine, monkeypatch):
    """A rank whose storage is slow still writes the step before; left out here, this one could never be committed."""
    monkeypatch.setattr(gang_keeper, "AGREE_NEWER_S", 0.05)
    config = machine.config(rank=1, world_size=2)
    config.paths.make()
    kept = machine.keeper(rank=1, world_size=2)
    kept.keeper = gang_keeper.GangKeeper(
        config,
        {},
        tell=lambda *_: None,
        note=kept.notes.append,
        superseded=kept.superseded.append,
        stopping=kept.stopping,
        changed=lambda: None,
        sharing=Sharing(1, 2, lambda rank, message: None),  # nobody answers
    )
    kept.open()
    kept.generation = kept.generation._replace(restart=1)
    kept.keeper.start_generation(kept.generation)
    kept.keeper.restored(loaded=False)
    for step in (5, 6):
        kept.save(step)
    written = kept.keeper.written
    wait_for("the older one is written", lambda: 5 in {point.step for point in written()}, LIMIT_S)
