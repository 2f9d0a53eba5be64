"""What is believed of a storage whose lists may be behind."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from orch_workers.checkpoint import NothingRestorable, Rejected, StorageUnavailable
from orch_workers.restoring import LISTS_MAX, Search

OLD, NEW = (SimpleNamespace(point=SimpleNamespace(step=step), rejected=()) for step in (10, 20))
GONE = NothingRestorable("storage lists only what is gone")


def search(*answers, committed_step=20, memory_step=-1):
    """Of a storage that gives these answers; the last one again and again."""
    left = list(answers)

    def find(_memory_step):
        found = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(found, Exception):
            raise found
        return found

    return Search(find, memory_step=memory_step, committed_step=committed_step)


def test_what_was_committed_is_asked_for_again():
    asked = search(OLD, None, NothingRestorable("nothing there"), NEW)
    for _ in range(3):
        with pytest.raises(StorageUnavailable):
            asked()
    assert asked() is NEW


@pytest.mark.parametrize("answer", [OLD, None])
def test_the_word_of_storage_counts_in_the_end(answer):
    asked = search(answer)
    for _ in range(LISTS_MAX):
        with pytest.raises(StorageUnavailable, match="step 20 was committed"):
            asked()
    assert asked() is answer


@pytest.mark.parametrize("committed_step", [0, 20])
def test_nothing_at_all_is_said_in_the_end(committed_step):
    asked = search(GONE, committed_step=committed_step)
    for _ in range(LISTS_MAX):
        with pytest.raises(StorageUnavailable):
            asked()
    with pytest.raises(NothingRestorable):
        asked()


def test_what_is_explained_is_not_asked_for_again():
    damaged = SimpleNamespace(point=OLD.point, rejected=(Rejected((1, 1), 20, "damaged"),))
    assert search(damaged)() is damaged
    assert search(OLD, committed_step=10)() is OLD
    assert search(None, memory_step=20)() is None
    assert search(None, committed_step=0)() is None
    with pytest.raises(NothingRestorable):
        search(NothingRestorable("all bad", [Rejected((1, 1), 20, "damaged")]))()


def test_a_list_of_what_is_gone_is_asked_for_again():
    """Seen: a stale list named the one checkpoint that had been removed, and the job was BLOCKED."""
    asked = search(GONE, OLD, committed_step=0)
    with pytest.raises(StorageUnavailable, match="only what is gone"):
        asked()
    assert asked() is OLD


def test_after_a_list_of_what_is_gone_an_empty_one_is_no_reason_to_start_over():
    asked = search(GONE, None, committed_step=0)
    with pytest.raises(StorageUnavailable):
        asked()
    with pytest.raises(NothingRestorable):
        asked()
