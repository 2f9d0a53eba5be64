"""What a gang agrees on, with real workers and processes: the step that all save before they leave, the state that all
begin with, whose failure it was; and what happens when somebody dies at the wrong moment.
"""

from __future__ import annotations

import random
import signal
import time

import pytest

from orch_policies.restart import Budgets
from orch_workers.checkpoint import writer
from support.gangs import Gang
from support.server import wait_for
from support.workers import AT_ONCE, LIMIT_S

G1, G2 = "000001.000001", "000001.000002"
FOR_EVER = "train(10**9, save_every=10**9, thousands=10)"


@pytest.fixture
def gang(machine):
    return Gang(machine, policy=AT_ONCE)


def newest(machine):
    return max((step for _, step in machine.committed()), default=0)


# leaving


@pytest.mark.parametrize("rank", [0, 1])
def test_told_to_one_rank_all_save_one_step_that_nobody_has_reached_and_leave(gang, machine, rank):
    gang.start(FOR_EVER)
    gang.wait_step(10)
    gang.ranks[rank].worker.stop("left", 20.0, "the machine goes", time.monotonic() + 30.0)
    assert gang.wait_over() == ["left", "left"]
    steps = {member.end()["step"] for member in gang.ranks.values()}
    assert steps == {newest(machine)}, "all stood at the step that was saved"
    assert newest(machine) > 10
    assert "the machine goes" in gang.ranks[1 - rank].end()["reason"]


def test_cancelled_on_all_ranks_at_once_they_leave_after_one_step(gang, machine):
    gang.start(FOR_EVER)
    gang.wait_step(10)
    for member in gang.ranks.values():
        member.worker.stop("stopped", 20.0)
    assert gang.wait_over() == ["stopped", "stopped"]
    assert {member.end()["step"] for member in gang.ranks.values()} == {newest(machine)}


def test_a_rank_that_does_not_hear_its_leader_leaves_by_itself(gang, machine):
    gang.start(FOR_EVER)
    gang.wait_step(10)
    gang.lose = lambda rank, message: True
    gang.ranks[1].worker.stop("left", 2.0)
    assert gang.ranks[1].end()["outcome"] == "left"
    assert newest(machine) <= 1, "what only one rank has is no checkpoint"


def test_told_to_leave_while_nothing_runs_yet_all_are_over(gang):
    gang.lose = lambda rank, message: message["kind"] == "order"  # nothing starts
    gang.start(FOR_EVER)
    gang.ranks[0].worker.stop("stopped", 20.0)
    gang.ranks[1].worker.stop("stopped", 20.0)
    assert gang.wait_over() == ["stopped", "stopped"]


# saving by the clock


def test_saves_by_the_clock_are_of_one_step_on_all_ranks(machine):
    gang = Gang(machine, policy=AT_ONCE, every_seconds=0.2).start(
        "train(150, save_every=10**9, thousands=20)"
    )
    assert gang.wait_over() == ["succeeded", "succeeded"]
    steps = [event["step"] for event in gang.ranks[0].told("CheckpointCommitted")]
    assert steps[0] == 1
    assert steps[-1] == 150
    assert len(steps) > 3, steps


# a network that loses, doubles and delays


def test_a_bad_network_costs_time_and_nothing_else(gang, machine, seed):
    rng = random.Random(seed)
    gang.lose = lambda rank, message: rng.random() < 0.5
    gang.start("train(60, hold=20)")
    gang.wait_step(20)
    gang.ranks[1].kill_process()
    assert gang.wait_over() == ["succeeded", "succeeded"]
    assert machine.committed()[-1] == (G2, 60)


# what is restored


def test_what_only_one_rank_has_saved_is_not_restored(gang, machine):
    """Rank 0 has step 21 in its memory and on its way, rank 1 was killed before it could save it."""
    gang.start(
        """
        def at(job):
            if RANK == 1 and job.step == 21 and os.environ["ORCH_GENERATION"].endswith("1"):
                os.kill(os.getpid(), 9)
        train(60, save_every=3, thousands=10, at=at)
        """
    )
    assert gang.wait_over() == ["succeeded", "succeeded"]
    assert gang.ranks[0].told("Restored")[-1]["step"] == 18
    assert (G1, 21) not in machine.committed()
    assert machine.committed()[-1] == (G2, 60)


def test_one_rank_takes_from_storage_what_the_others_have_in_memory(gang, machine):
    gang.start("train(60, hold=24)")
    wait_for("a checkpoint", lambda: newest(machine) >= 20, LIMIT_S)
    gang.ranks[1].forget_memory()
    gang.lose_agent(1, attempt=2)
    assert gang.wait_over() == ["succeeded", "succeeded"]
    assert gang.ranks[0].told("Restored")[-1]["source"] == "memory"
    assert gang.ranks[0].told("Restored")[-1]["step"] >= 20


def test_a_part_that_is_damaged_is_given_up_by_all_ranks(gang, machine):
    gang.start("train(60, hold=24)")
    wait_for("checkpoints", lambda: newest(machine) >= 20, LIMIT_S)
    for member in gang.ranks.values():
        member.die()
        member.forget_memory()
    generation, step = machine.committed()[-1]
    folder = machine.storage.root / "digits-1a2b" / "shards" / generation / f"{step:012d}"
    (shard,) = folder.glob("*")  # what is the same on both is there once
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    gang.start("train(60)", attempt=2)
    assert gang.wait_over() == ["succeeded", "succeeded"]
    restored = gang.ranks[0].told("Restored")[-1]
    assert 0 < restored["step"] < step
    assert machine.files("quarantine") == [f"{generation}/{step:012d}.json"]


def test_a_leader_that_dies_with_all_parts_in_storage_loses_nothing(gang, machine, monkeypatch):
    """The one after it finds them, and writes the last word first of all."""

    def never(*_arguments, **_named):
        raise OSError("a test says no")

    with monkeypatch.context() as patch:
        patch.setattr(writer, "commit_step", never)
        gang.start("train(60, save_every=25, hold=26)")
        wait_for("all parts", lambda: len(machine.files("ranks")) >= 4, LIMIT_S)
        gang.ranks[0].die()
        gang.ranks[0].forget_memory()
    assert machine.committed() == []
    gang.lose_agent(0, attempt=2)
    assert gang.wait_over() == ["succeeded", "succeeded"]
    step = gang.ranks[0].told("Restored")[-1]["step"]
    assert step >= 25
    told = [(event["generation"], event["step"]) for event in gang.ranks[0].told("CheckpointCommitted")]
    assert (G1, step) in told


# whose failure it was


def test_an_error_of_one_rank_is_told_and_not_what_the_others_made_of_it(machine):
    gang = Gang(machine, policy={"budgets": Budgets(max_failures=0).to_dict()})
    gang.start(
        """
        def at(job):
            if RANK == 1 and job.step == 12:
                raise ValueError("a bad batch")
        train(100, at=at)
        """
    )
    end = gang.ranks[0].end()
    assert end["outcome"] == "failed"
    assert "rank 1" in end["reason"]
    assert "a bad batch" in end["reason"]
    assert "ValueError: a bad batch" in end["traceback"]
    assert gang.ranks[0].told("ProcessExited")[-1]["rank"] == 1


def test_a_stopped_process_is_a_hang_with_the_stacks_of_all_ranks(machine):
    gang = Gang(machine, policy=AT_ONCE, hang=2.0).start("train(60, hold=24)")
    gang.wait_step(20)
    gang.ranks[1].kill_process(signal.SIGSTOP)
    assert gang.wait_over() == ["succeeded", "succeeded"]
    (decided,) = gang.ranks[0].told("RestartDecided")
    assert decided["charge_to"] == "hangs"
    assert decided["reason"].startswith("rank 1: ")
    assert "stopped by a signal" in decided["reason"]
    for member in gang.ranks.values():
        assert "What its processes were doing" in member.paths.log.read_text()


# at the end


@pytest.mark.parametrize("rank", [0, 1])
def test_lost_when_every_process_has_ended_the_end_is_trained_again(gang, machine, rank):
    """Nothing of the last step is in storage by then: it stays there until it is."""
    gang.lose = lambda to, message: message["kind"] == "report" and message["report"]["phase"] == "over"
    gang.start("train(20)")
    wait_for("rank 1 is over", lambda: gang.ranks[1].told("WorkerEnded"), LIMIT_S)
    assert not gang.ranks[0].told("WorkerEnded")
    gang.lose = lambda to, message: False
    gang.lose_agent(rank, attempt=2)
    wait_for("it ends again", lambda: gang.ranks[0].told("WorkerEnded"), LIMIT_S)
    assert gang.ranks[0].end()["outcome"] == "succeeded"
    assert gang.ranks[0].told("Restored")[-1]["step"] == 20
