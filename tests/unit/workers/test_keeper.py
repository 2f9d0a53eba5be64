"""What is kept, what is restored, and on which chain: a keeper with real slots, and a training process that the test
plays.
"""

from __future__ import annotations

import errno
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest

from orch_policies.restart import History
from orch_workers import patience
from orch_workers.checkpoint.errors import NothingRestorable, StorageRefused, StorageUnavailable
from orch_workers.checkpoint.staging import Staging
from orch_workers.numbers import Stretch
from orch_workers.training.slots import READY, Slot
from support.server import wait_for
from support.workers import LIMIT_S, Failing, Stuck, good

G1, G2 = "000001.000001", "000001.000002"
TRIES = 6
"""More than one thread may be trying; after so many, each has been refused."""


def committed_before(step):
    return {"history": History(highest_step=step, committed_step=step).to_dict()}


# what a start begins with


def test_a_true_first_start_says_that_it_starts_from_nothing(machine):
    kept = machine.keeper().open()
    assert kept.begin() is None
    assert kept.notes == ["starts from nothing: this job has no checkpoint yet"]


@pytest.mark.parametrize("mounted", [True, False])
def test_an_empty_storage_is_no_new_job_when_something_was_committed(machine, mounted):
    if mounted:
        machine.storage.root.mkdir()
    kept = machine.keeper(attempt=3, policy=committed_before(40)).open()
    with pytest.raises(NothingRestorable, match="has no checkpoint, although this job has committed some"):
        kept.prepare()
    assert not any("starts from nothing" in note for note in kept.notes)


def test_the_newest_snapshot_is_restored_from_memory_without_storage(machine):
    kept = machine.keeper().open()
    kept.begin()
    kept.keep(10)
    machine.storage.mood = Failing()
    kept.keeper.process_gone()
    found = kept.begin()
    assert (found.source, found.step) == ("memory", 10)


def test_an_agent_adopts_what_the_one_before_it_left_in_memory(machine):
    first = machine.keeper().open()
    first.begin()
    machine.storage.mood = Failing("manifests")
    first.save(10)
    first.stop()
    second = machine.keeper(attempt=2).open()
    found = second.begin()
    assert (found.source, found.step) == ("memory", 10)
    machine.storage.mood = good
    assert second.keeper.drain(LIMIT_S)
    assert machine.committed() == [(G1, 10)]


def moved_away_and_back(machine):
    """Attempt 1 here until step 10, attempt 2 elsewhere until step 20; attempt 3 is here again."""
    here = machine.keeper().open()
    here.begin()
    here.keep(10)
    here.stop()
    machine.moves_to("elsewhere")
    there = machine.keeper(attempt=2).open()
    assert there.begin().source == "storage"
    there.keep(20)
    there.stop()
    machine.moves_to("here")


@pytest.mark.parametrize("part", ["generations", "manifests"])
def test_older_memory_does_not_win_over_newer_storage_that_is_away_for_a_moment(machine, part):
    moved_away_and_back(machine)
    machine.storage.mood = mood = Failing(part)
    kept = machine.keeper(attempt=3, policy=committed_before(20))
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(lambda: kept.open().begin())
        wait_for("some tries", lambda: mood.seen >= TRIES, LIMIT_S)
        assert not found.done()
        machine.storage.mood = good
        assert (found.result(LIMIT_S).source, found.result().step) == ("storage", 20)


def test_older_memory_does_not_win_although_nobody_has_told_what_was_committed(machine):
    moved_away_and_back(machine)
    found = machine.keeper(attempt=3).open().begin()
    assert (found.source, found.step) == ("storage", 20)


def test_older_memory_is_not_trusted_when_storage_refuses(machine):
    moved_away_and_back(machine)
    machine.storage.mood = Failing(error=StorageRefused)
    kept = machine.keeper(attempt=3, policy=committed_before(20))
    with pytest.raises(StorageRefused):
        kept.open()
    left = [Slot(str(path)).header() for path in kept.config.paths.snapshots.glob("slot-*")]
    assert [(header.state, header.step) for header in left] == [(READY, 10)]


def test_a_newer_generation_in_storage_than_beside_the_snapshots_takes_their_word_away(machine, monkeypatch):
    kept = machine.keeper().open()
    kept.begin()
    kept.keep(10)
    monkeypatch.setattr(Staging, "save_lineage", no_room)
    kept.begin()
    kept.keep(20)
    kept.stop()
    shutil.rmtree(kept.config.paths.snapshots / "slot-1", ignore_errors=True)
    assert Staging(kept.config.paths.snapshots).load_lineage().generation == (1, 1)
    after = machine.keeper(attempt=2, policy=committed_before(20)).open()
    assert not after.keeper._memory_is_newest
    assert after.begin().step == 20


def test_storage_that_is_known_to_be_newer_than_trusted_memory_is_waited_for(machine):
    kept = machine.keeper().open()
    kept.begin()
    kept.keep(10, 20)
    kept.stop()
    newest = [
        path for path in kept.config.paths.snapshots.glob("slot-*") if Slot(str(path)).header().step == 20
    ]
    newest[0].unlink()  # given away, and torn when its process died
    after = machine.keeper(attempt=2, policy=committed_before(20)).open()
    machine.storage.mood = mood = Failing("manifests")
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(after.begin)
        wait_for("some tries", lambda: mood.seen >= TRIES, LIMIT_S)
        assert not found.done()
        machine.storage.mood = good
        assert (found.result(LIMIT_S).source, found.result().step) == ("storage", 20)


def test_a_damaged_checkpoint_is_set_aside_and_said(machine):
    kept = machine.keeper().open()
    kept.begin()
    kept.keep(10, 20)
    kept.stop()
    shutil.rmtree(kept.config.paths.snapshots_job)
    shard = next((machine.storage.root / kept.config.job_id / "shards" / G1).glob("*20/*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-200])
    after = machine.keeper(attempt=2, policy=committed_before(20)).open()
    assert after.begin().step == 10
    assert "the checkpoint of step 20 is damaged and in quarantine" in "\n".join(after.notes)


# starting over


def test_a_script_that_starts_over_begins_a_chain_of_its_own_and_takes_nothing_away(machine):
    kept = machine.keeper().open()
    kept.begin()
    kept.keep(10, 20)
    assert kept.prepare().step == 20
    kept.keeper.restored(loaded=False)
    kept.keep(1, 2)
    assert "was told to start over: the state of step 20 is left behind" in kept.notes
    assert machine.committed() == [(G1, 10), (G1, 20), (G2, 1), (G2, 2)]
    chain = kept.keeper.catalog.chain()
    assert (chain.generation, chain.parent, chain.ancestors) == ((1, 2), None, ())
    kept.stop()
    after = machine.keeper(attempt=2).open()
    assert after.begin().step == 2
    after.keep(3)
    assert machine.committed()[:2] == [(G1, 10), (G1, 20)]


def test_a_script_that_starts_over_and_dies_at_once_starts_over_again(machine):
    kept = machine.keeper().open()
    kept.begin()
    kept.keep(10, 20)
    assert kept.prepare().step == 20
    kept.keeper.restored(loaded=False)
    kept.keeper.process_gone()
    assert kept.prepare() is None


# the chain


def no_room(self, chain):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_the_chain_is_kept_when_it_cannot_be_noted_beside_the_snapshots(machine, monkeypatch):
    monkeypatch.setattr(Staging, "save_lineage", no_room)
    kept = machine.keeper().open()
    kept.begin()
    kept.keep(10, 20)
    kept.keeper.process_gone()
    assert kept.begin().step == 20
    kept.keep(30)
    assert machine.committed() == [(G1, 10), (G1, 20), (G2, 30)]
    chain = kept.keeper.catalog.chain()
    assert (chain.generation, chain.parent, chain.restored_step) == ((1, 2), (1, 1), 20)
    assert any("the chain could not be noted" in note for note in kept.notes)


def test_a_keeper_that_is_superseded_says_so_and_commits_nothing(machine):
    kept = machine.keeper().open()
    kept.begin()
    kept.keep(10)
    newer = machine.keeper(attempt=2).open()
    newer.begin()
    newer.keep(11)
    kept.save(12)
    wait_for("superseded", lambda: kept.superseded, LIMIT_S)
    assert (G1, 12) not in machine.committed()


# a process that dies


def test_what_was_whole_when_its_process_died_is_committed_and_the_late_word_is_dropped(machine):
    kept = machine.keeper().open()
    kept.begin()
    kept.keep(5)
    index = kept.save(7, say=False)
    kept.keeper.process_gone()
    assert kept.keeper.drain(LIMIT_S)
    assert machine.committed() == [(G1, 5), (G1, 7)]
    kept.keeper.saved(index, {"reason": "asked"})
    assert kept.keeper.drain(LIMIT_S)
    assert kept.committed == [(G1, 5), (G1, 7)]


def test_a_late_word_does_not_take_the_slot_of_the_next_process(machine):
    kept = machine.keeper().open()
    kept.begin()
    late = kept.save(7, say=False)
    kept.keeper.process_gone()
    assert kept.keeper.drain(LIMIT_S)
    kept.begin()
    given = kept.keeper.acquire(1024)
    assert given.index != late
    kept.keeper.saved(late, {})
    assert kept.keeper.acquire(1024) is None  # the next process is still filling its own


def test_what_was_torn_when_its_process_died_is_only_room(machine):
    kept = machine.keeper().open()
    kept.begin()
    kept.keep(5)
    kept.save(7, torn=True, say=False)
    kept.keeper.process_gone()
    assert kept.keeper.drain(LIMIT_S)
    assert machine.committed() == [(G1, 5)]
    assert kept.begin().step == 5
    kept.keep(8)


def test_what_is_in_storage_already_is_not_written_again_when_the_process_dies(machine):
    kept = machine.keeper().open()
    kept.begin()
    kept.keep(5)
    kept.keeper.process_gone()
    assert kept.keeper.drain(LIMIT_S)
    assert kept.committed == [(G1, 5)]


def test_what_is_forgotten_on_its_way_to_storage_does_not_free_the_slot_of_the_next_one(machine):
    kept = machine.keeper().open()
    kept.begin()
    kept.keep(2)
    machine.storage.mood = first = Stuck("shards")
    slot = kept.save(5)
    assert first.reached.wait(LIMIT_S)
    kept.keeper.process_gone()
    assert kept.keeper.poison(Stretch(2, 5, 5, "loss is nan")) == [((1, 1), 5)]
    kept.begin()
    assert kept.save(3) == slot
    machine.storage.mood = second = Stuck("shards")
    first.go.set()
    assert second.reached.wait(LIMIT_S)
    assert kept.save(4) != slot
    assert kept.keeper.acquire(1024) is None, "step 3 is being written, step 4 waits"
    second.go.set()
    assert kept.keeper.drain(LIMIT_S)
    assert machine.committed()[-1] == (G2, 4)


# storage that is away


def test_the_writer_tries_until_storage_is_back_and_says_both(machine):
    kept = machine.keeper().open()
    kept.begin()
    machine.storage.mood = mood = Failing("shards")
    kept.save(5)
    wait_for("some tries", lambda: mood.seen >= 3, LIMIT_S)
    assert "step 5 is not in storage yet" in kept.keeper.status()["storage_trouble"]
    machine.storage.mood = good
    assert kept.keeper.drain(LIMIT_S)
    assert kept.keeper.status()["storage_trouble"] == ""
    assert len([note for note in kept.notes if "step 5 is not in storage yet" in note]) == 1


def test_a_newer_snapshot_goes_before_one_that_storage_would_not_take(machine):
    kept = machine.keeper().open()
    kept.begin()
    machine.storage.mood = mood = Failing("shards")
    kept.save(5)
    wait_for("a try", lambda: mood.seen, LIMIT_S)
    kept.save(6)
    kept.save(7)
    machine.storage.mood = good
    assert kept.keeper.drain(LIMIT_S)
    assert kept.committed[-1] == (G1, 7)


def test_a_drain_does_not_wait_for_the_end_of_a_long_pause(machine, monkeypatch):
    monkeypatch.setattr(patience, "RETRY_MIN_S", 600.0)
    monkeypatch.setattr(patience, "RETRY_MAX_S", 600.0)
    kept = machine.keeper().open()
    kept.begin()
    machine.storage.mood = mood = Failing("shards", times=1)
    kept.save(5)
    wait_for("the try that fails", lambda: mood.seen, LIMIT_S)
    assert kept.keeper.drain(10.0)
    assert machine.committed() == [(G1, 5)]


def test_a_fault_of_ours_in_the_writer_does_not_end_the_keeping(machine, monkeypatch):
    kept = machine.keeper().open()
    kept.begin()
    faults = iter([RuntimeError("a fault")])

    def retain(committed, real=kept.keeper._retainer.after):
        for fault in faults:
            raise fault
        return real(committed)

    monkeypatch.setattr(kept.keeper._retainer, "after", retain)
    kept.keep(5)
    kept.keep(6)
    assert machine.committed() == [(G1, 5), (G1, 6)]


def test_both_slots_are_busy_while_one_is_written_and_one_waits(machine):
    kept = machine.keeper().open()
    kept.begin()
    machine.storage.mood = stuck = Stuck("shards")
    kept.save(5)
    assert stuck.reached.wait(LIMIT_S)
    kept.save(6)
    assert kept.keeper.acquire(1024) is None
    stuck.go.set()
    assert kept.keeper.drain(LIMIT_S)
    assert kept.keeper.acquire(1024) is not None


def test_the_newest_few_are_kept(machine):
    kept = machine.keeper(keep={"last": 2}).open()
    kept.begin()
    kept.keep(1, 2, 3, 4)
    assert machine.committed() == [(G1, 3), (G1, 4)]


def test_a_storage_that_fails_after_the_commit_costs_no_commit(machine):
    kept = machine.keeper(keep={"last": 1, "best": {"metric": "loss"}}).open()
    kept.begin()
    kept.keep(1)

    def unreadable(what, path):
        if what == "read" and "/manifests/" in path:
            raise StorageUnavailable("a test says no")

    machine.storage.mood = unreadable
    kept.keep(2)
    assert kept.committed == [(G1, 1), (G1, 2)]
    assert kept.keeper.status()["storage_trouble"] == ""
    assert "older checkpoints are not deleted for now" in kept.notes[-1]
    machine.storage.mood = good
    kept.keep(3)
    assert machine.committed() == [(G1, 3)]


def test_the_agent_says_how_often_it_saves_and_why(machine):
    kept = machine.keeper(every_auto=True, seen={"job": {"failures": 5, "running_s": 3600.0}}).open()
    kept.begin()
    kept.keep(1)
    found = kept.keeper.status()["checkpointing"]
    assert found["auto"]
    assert found["durable_s"] > 0
    assert (found["failures"], found["blocked_s"]) == (5, None), "a trainee of the tests tells no cost"
    assert found["sentence"].startswith("every 60 s (auto")


def test_code_that_is_not_in_storage_needs_a_person(machine):
    kept = machine.keeper().open()
    with pytest.raises(StorageRefused, match="put it back, or submit the job anew"):
        kept.keeper.open_object("code/abc.zip")


def test_what_was_left_behind_by_starting_over_is_dropped_and_nobody_is_superseded(machine):
    kept = machine.keeper().open()
    kept.begin()
    kept.keep(10)
    machine.storage.mood = mood = Failing("shards")
    kept.save(15)
    wait_for("a try", lambda: mood.seen, LIMIT_S)
    kept.keeper.process_gone()
    kept.prepare()
    kept.keeper.restored(loaded=False)
    machine.storage.mood = good
    assert kept.keeper.drain(LIMIT_S)
    kept.keep(1)
    assert kept.superseded == []
    assert machine.committed() == [(G1, 10), (G2, 1)]


def test_a_process_that_began_anew_during_an_upload_does_not_supersede_its_own_agent(machine):
    kept = machine.keeper().open()
    kept.begin()
    kept.keep(10)
    machine.storage.mood = stuck = Stuck("manifests")
    kept.save(20)
    assert stuck.reached.wait(LIMIT_S)
    kept.keeper.process_gone()
    assert kept.begin().step == 20
    kept.keeper.catalog.begin(kept.keeper._chain)  # as the next look for a restore does
    machine.storage.mood = good
    stuck.go.set()
    assert kept.keeper.drain(LIMIT_S)
    assert kept.superseded == []
    assert kept.committed[-1] == (G1, 20)
