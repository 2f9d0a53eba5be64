"""What is said in storage of a generation that goes on: before its first commit, which may be long in coming."""

from __future__ import annotations

from support.server import wait_for
from support.workers import LIMIT_S

G1 = "000001.000001"


def test_a_generation_that_goes_on_is_in_storage_before_it_saves_anything(machine):
    """So that an agent which does not know that it was superseded removes nothing of what this one went on from."""
    older = machine.keeper(keep={"last": 1}).open()
    older.begin()
    older.keep(10)
    machine.moves_to("elsewhere")
    newer = machine.keeper(attempt=2).open()
    assert newer.begin().source == "storage"
    catalog = newer.keeper.catalog
    wait_for("it is said", lambda: catalog.newest_generation() == (2, 1), LIMIT_S)
    assert catalog.chain().restored_step == 10
    older.save(20)
    wait_for("the older one learns it", lambda: older.superseded, LIMIT_S)
    assert machine.committed() == [(G1, 10)]


def test_a_save_is_due_at_once_where_what_it_went_on_from_was_removed_a_moment_before(machine):
    older = machine.keeper().open()
    older.begin()
    older.keep(10)
    machine.moves_to("elsewhere")
    newer = machine.keeper(attempt=2).open()
    newer.prepare()
    newer.keeper.catalog.remove(newer.keeper.catalog.restore_points()[0])
    assert newer.keeper.saved_s > 0
    newer.keeper.restored(loaded=True)
    wait_for("a save is due", lambda: newer.keeper.saved_s == 0, LIMIT_S)
