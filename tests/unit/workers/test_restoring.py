"""What is believed of a storage whose lists may be behind."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from orch_workers.checkpoint.errors import NothingRestorable, Rejected, StorageUnavailable
from orch_workers.restoring import LISTS_MAX, Look

GONE = NothingRestorable("storage lists only what is gone")
BAD = NothingRestorable("none can be restored", [Rejected((1, 1), 5, "does not match its digest")])


def stored(step):
    return SimpleNamespace(point=SimpleNamespace(step=step), rejected=())


def look(*answers, memory_step=-1, committed_step=0):
    answers = list(answers)

    def find():
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    return Look(find, memory_step=memory_step, committed_step=committed_step)


def test_a_list_of_what_is_gone_is_asked_for_again():
    """Seen: a stale list named the one checkpoint that had been removed, and the job was BLOCKED."""
    asking = look(GONE, stored(7))
    with pytest.raises(StorageUnavailable, match="only what is gone"):
        asking()
    assert asking().point.step == 7


def test_after_a_list_of_what_is_gone_an_empty_one_is_no_reason_to_start_over():
    asking = look(GONE, None)
    with pytest.raises(StorageUnavailable):
        asking()
    with pytest.raises(NothingRestorable):
        asking()


def test_so_often_and_then_it_counts():
    asking = look(*[GONE] * (LISTS_MAX + 1))
    for _ in range(LISTS_MAX):
        with pytest.raises(StorageUnavailable):
            asking()
    with pytest.raises(NothingRestorable):
        asking()


def test_what_was_found_damaged_counts_at_once():
    with pytest.raises(NothingRestorable, match="none can be restored"):
        look(BAD)()


def test_what_is_known_to_have_been_committed_is_waited_for():
    asking = look(stored(5), stored(9), committed_step=9)
    with pytest.raises(StorageUnavailable, match="step 9 was committed"):
        asking()
    assert asking().point.step == 9


def test_nothing_at_all_is_a_start_from_nothing():
    assert look(None)() is None
