"""What should be in storage, and a list that does not have it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from orch_workers.checkpoint import NothingRestorable, Rejected, StorageUnavailable
from orch_workers.restoring import LISTS_MAX, Look
from support.server import wait_for
from support.workers import LIMIT_S

OLD, NEW = (SimpleNamespace(point=SimpleNamespace(step=step), rejected=()) for step in (10, 20))


def look(*answers, committed_step=20, memory_step=-1):
    left = list(answers)

    def find():
        found = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(found, Exception):
            raise found
        return found

    return Look(find, memory_step=memory_step, committed_step=committed_step)


def test_what_was_committed_is_asked_for_again():
    asked = look(OLD, None, NothingRestorable("nothing there"), NEW)
    for _ in range(3):
        with pytest.raises(StorageUnavailable):
            asked()
    assert asked() is NEW


@pytest.mark.parametrize("answer", [OLD, None])
def test_the_word_of_storage_counts_in_the_end(answer):
    asked = look(answer)
    for _ in range(LISTS_MAX):
        with pytest.raises(StorageUnavailable, match="step 20 was committed"):
            asked()
    assert asked() is answer


def test_nothing_at_all_is_said_in_the_end():
    asked = look(NothingRestorable("has no checkpoint"))
    for _ in range(LISTS_MAX):
        with pytest.raises(StorageUnavailable):
            asked()
    with pytest.raises(NothingRestorable):
        asked()


def test_what_is_explained_is_not_asked_for_again():
    damaged = SimpleNamespace(point=OLD.point, rejected=(Rejected((1, 1), 20, "damaged"),))
    assert look(damaged)() is damaged
    assert look(OLD, committed_step=10)() is OLD
    assert look(None, memory_step=20)() is None
    assert look(None, committed_step=0)() is None
    with pytest.raises(NothingRestorable):
        look(NothingRestorable("all bad", [Rejected((1, 1), 20, "damaged")]))()


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
