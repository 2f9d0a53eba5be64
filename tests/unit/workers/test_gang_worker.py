"""Two ranks with real agents' workers, processes and slots: they restart, save, restore and leave as one."""

from __future__ import annotations

import signal

import pytest

from orch_workers.gang import worker as gang_worker
from support.gangs import Gang
from support.server import wait_for
from support.workers import AT_ONCE, LIMIT_S

G1, G2, G3 = "000001.000001", "000001.000002", "000002.000001"
FOR_EVER = "train(10**9)"


@pytest.fixture
def gang(machine):
    return Gang(machine, policy=AT_ONCE)


def test_all_ranks_train_to_the_end_and_every_checkpoint_is_of_all(gang, machine):
    gang.start("train(12)")
    assert gang.wait_over() == ["succeeded", "succeeded"]
    assert [step for _, step in machine.committed()] == [1, 5, 10, 12]
    assert machine.files("ranks")[:2] == [f"{G1}/{1:012d}/{rank}.json" for rank in (0, 1)]
    leader, other = gang.ranks[0], gang.ranks[1]
    assert [event["step"] for event in leader.told("CheckpointCommitted")][-1] == 12
    assert not other.told("CheckpointCommitted")
    assert [event["generation"] for event in other.told("ProcessStarted")] == [G1]


@pytest.mark.parametrize("rank", [0, 1])
def test_when_one_process_is_killed_all_begin_again_in_place_from_memory(gang, rank):
    gang.start("train(60, hold=24)")
    gang.wait_step(24)
    gang.ranks[rank].kill_process()
    assert gang.wait_over() == ["succeeded", "succeeded"]
    leader = gang.ranks[0]
    for member in gang.ranks.values():
        assert [event["generation"] for event in member.told("ProcessStarted")] == [G1, G2]
    (restored,) = leader.told("Restored")
    assert restored["source"] == "memory"
    assert restored["step"] >= 20
    (exited,) = leader.told("ProcessExited")
    assert (exited["rank"], exited["signal"]) == (rank, signal.SIGKILL)
    (decided,) = leader.told("RestartDecided")
    assert decided["reason"].startswith(f"rank {rank}: killed by SIGKILL")
    assert decided["charge_to"] == "failures"
    assert not gang.ranks[1].told("RestartDecided")


@pytest.mark.parametrize("rank", [0, 1])
def test_a_lost_agent_costs_one_replacement_and_the_others_keep_their_memory(gang, machine, rank):
    gang.start("train(60, hold=24)")
    wait_for("a checkpoint", lambda: [step for _, step in machine.committed() if step >= 20], LIMIT_S)
    gang.lose_agent(rank, attempt=2)
    assert gang.wait_over() == ["succeeded", "succeeded"]
    assert gang.ranks[0].told("ProcessStarted")[-1]["generation"] == G3
    ends = {other: member.end()["attempt"] for other, member in gang.ranks.items()}
    assert ends == {rank: 2, 1 - rank: 1}, "a survivor keeps the number of the attempt that placed it"
    assert gang.ranks[0].told("Restored")[-1]["step"] >= 20
    assert machine.committed()[-1] == (G3, 60)


def test_the_leader_tells_of_all_ranks_and_names_the_slow_one(machine):
    gang = Gang(machine, policy=AT_ONCE).start(
        """
        job = Trainee()
        while True:
            job.steps(1)
            work(100 if RANK else 20)
        """
    )

    def ranks():
        progress = gang.ranks[0].worker._state()["usage"]["ranks"]
        return progress if len(progress) == 2 and progress[1]["slower"] else None

    first, second = wait_for("a slow rank is named", ranks, LIMIT_S)
    assert (first["rank"], second["rank"]) == (0, 1)
    assert first["slower"] is None
    assert second["slower"] > 1.5
    assert second["host"] == first["host"]
    assert second["step_s"] > first["step_s"]


def test_it_is_said_that_only_some_ranks_call_orch_training(machine, monkeypatch):
    monkeypatch.setattr(gang_worker, "SILENT_S", 0.1)
    gang = Gang(machine, policy=AT_ONCE).start(
        """
        job = None if RANK else Trainee()
        signal.pause()
        """
    )
    gang.ranks[0].wait_note("rank 1 does not call orch.training() and others do")
