"""What a keeper restores while a list is behind, and which of two that wait it writes."""

from __future__ import annotations

from support.server import wait_for
from support.workers import LIMIT_S


def test_a_keeper_does_not_restore_an_older_step_because_a_list_is_behind(machine):
    first = machine.keeper().open()
    first.begin()
    first.keep(10, 20)
    first.stop()
    machine.moves_to("elsewhere")
    real, behind = machine.storage.list, [3]

    def lists(prefix=""):
        entries = real(prefix)
        if "manifests" in prefix and behind[0]:
            behind[0] -= 1
            return [entry for entry in entries if not entry.path.endswith("20.json")]
        return entries

    machine.storage.list = lists
    known = {"history": {"highest_step": 20, "committed_step": 20}}
    after = machine.keeper(attempt=2, policy=known).open()
    assert after.begin().step == 20
    assert behind == [0]


def test_the_newest_of_two_that_wait_is_written_and_the_older_is_not(machine):
    kept = machine.keeper().open()
    kept.begin()
    with kept.keeper._lock:  # the writer cannot begin meanwhile
        kept.save(5)
        kept.save(6)
    assert kept.keeper.drain(LIMIT_S)
    wait_for("the word", lambda: kept.committed, LIMIT_S)
    assert [step for _, step in kept.committed] == [6]
