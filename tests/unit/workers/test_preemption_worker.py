"""A real worker that is given notice, at every bad moment: what it had is kept, and it leaves."""

from __future__ import annotations

import pytest

from orch_workers import ending
from orch_workers.preemption import Leaving, Moment, Notice, deadline_in
from support.server import wait_for
from support.workers import AT_ONCE, DEAF, LIMIT_S, LISTENS, Failing, Stuck

G1, G2 = "000001.000001", "000001.000002"
PLENTY_S = 600.0
"""More than any test may take: who leaves in time did not leave because the time was over."""


class Noticed:
    """The agent's part around a worker."""

    def __init__(self, running):
        self.running = running
        self._leaving = Leaving(
            running.worker,
            running.reports,
            attempt=1,
            rank=0,
            node_id="ab",
            grace_s=PLENTY_S,
            path=running.paths.state / "notices.json",
        )

    def give(self, left_s=PLENTY_S, key="k", kind="preempt"):
        deadline = None if left_s is None else deadline_in(left_s, Moment.now())
        self._leaving.notice(Notice("aws", kind, "AWS takes it", key, deadline))


def test_it_saves_at_its_next_step_flushes_and_leaves(machine):
    worker = machine.worker(script=LISTENS)
    machine.go("up")
    worker.wait_told("Recovered")
    Noticed(worker).give()
    end = worker.end()
    assert (end["outcome"], end["reason"], end["step"]) == ("left", "AWS takes it", 4)
    assert machine.committed() == [(G1, 4)]
    told = worker.told("PreemptionNoticed")
    assert [(event["source"], event["node_id"], event["leaves"]) for event in told] == [("aws", "ab", True)]


def test_before_a_process_runs_nothing_is_started(machine):
    machine.storage.mood = Failing("generations")
    worker = machine.worker(run="sh -c 'echo x >>ran'")
    worker.wait_note("storage:")
    Noticed(worker).give()
    end = worker.end()
    assert (end["outcome"], end["reason"]) == ("left", "AWS takes it")
    assert not (machine.workdir / "ran").exists()


def test_a_process_without_orch_gets_a_sigterm_at_once(machine):
    machine_run = "trap 'exit 0' TERM; echo >up; sleep 1000 & wait"
    worker = machine.worker(run=machine_run)
    wait_for("it runs", (machine.workdir / "up").exists, LIMIT_S)
    Noticed(worker).give()
    assert worker.end()["outcome"] == "left"


def test_during_a_restore_the_state_is_kept_and_one_more_step_is_saved(machine):
    script = """
        def load(job):
            if job.step:
                wait("restoring")
        job = Trainee(load=load)
        job.steps(1)
        if job.step == 1:
            job.save()
            os.kill(os.getpid(), 9)
        while not job.page.read_word().stop:
            pass
        job.steps(1)
        job.save("stop")
        sys.exit(75)
    """
    worker = machine.worker(script=script, policy=AT_ONCE)
    wait_for("the second start restores", (machine.workdir / "restoring").exists, LIMIT_S)
    Noticed(worker).give()
    machine.go("restoring")
    assert worker.end()["outcome"] == "left"
    assert machine.committed()[-1] == (G2, 3)
    assert worker.told("Restored")[0]["step"] == 1


def test_during_an_upload_the_newest_goes_to_storage_after_it(machine):
    machine.storage.mood = stuck = Stuck("shards")
    script = """
        job = Trainee()
        job.steps(1)
        job.save()
        job.steps(2)
        wait("up")
        while not job.page.read_word().stop:
            pass
        job.save("stop")
        sys.exit(75)
    """
    worker = machine.worker(script=script)
    assert stuck.reached.wait(LIMIT_S)
    machine.go("up")
    Noticed(worker).give()
    wait_for("it has saved and left", lambda: worker.worker._launcher and not worker.worker._launcher.running)
    stuck.go.set()
    assert worker.end()["outcome"] == "left"
    assert machine.committed() == [(G1, 1), (G1, 3)]


def test_one_that_reaches_no_step_is_ended_and_what_was_in_memory_is_tried(machine):
    machine.storage.mood = Failing("shards")
    worker = machine.worker(script=DEAF)
    machine.go("up")
    worker.wait_note("storage:")
    Noticed(worker).give(left_s=1.0)
    wait_for("it is ended", lambda: not worker.worker._launcher.running, LIMIT_S)
    machine.storage.mood = lambda *_: None  # after the deadline, and the machine is still there
    end = worker.end()
    assert (end["outcome"], end["reason"]) == ("left", "AWS takes it")
    assert machine.committed() == [(G1, 2)]


def test_where_storage_stays_away_it_is_said_and_the_last_checkpoint_is_intact(machine, monkeypatch):
    monkeypatch.setattr(ending, "DRAIN_LIMIT_S", 0.2)
    script = """
        job = Trainee()
        job.steps(1)
        job.save()
        wait("committed")
        job.steps(1)
        wait("up")
        while not job.page.read_word().stop:
            pass
        job.save("stop")
        sys.exit(75)
    """
    worker = machine.worker(script=script)
    worker.wait_told("CheckpointCommitted")
    machine.go("committed")
    machine.storage.mood = Failing("shards")
    machine.go("up")
    Noticed(worker).give(left_s=1.0)
    end = worker.end()
    assert end["outcome"] == "left"
    assert "did not reach storage" in end["reason"]
    assert machine.committed() == [(G1, 1)]
    machine.storage.mood = lambda *_: None
    again = machine.worker(2, script="job = Trainee()\njob.steps(1)\njob.save()\njob.finished()")
    assert again.end()["outcome"] == "succeeded"
    assert [event["step"] for event in again.told("Restored")] == [2]  # from this machine's memory


@pytest.mark.parametrize("sooner_s", [0.0, 0.5])
def test_a_second_notice_with_less_time_counts(machine, sooner_s):
    """The first would have left the process alone for minutes."""
    worker = machine.worker(script=DEAF)
    machine.go("up")
    noticed = Noticed(worker)
    noticed.give(PLENTY_S, "first")
    noticed.give(sooner_s, "second")
    assert worker.end()["outcome"] == "left"
    assert len(worker.told("PreemptionNoticed")) == 2
    assert machine.committed() == [(G1, 2)]


def test_after_success_it_is_too_late_for_a_notice(machine):
    worker = machine.worker(run="true")
    assert worker.end()["outcome"] == "succeeded"
    Noticed(worker).give()
    assert worker.told("PreemptionNoticed") == []
    assert len(worker.told("WorkerEnded")) == 1


def test_a_warning_has_the_next_step_saved_and_the_worker_stays(machine):
    script = """
        job = Trainee()
        job.steps(3)
        wait("up")
        while not job.page.read_word().save_at:
            pass
        assert not job.page.read_word().stop
        job.steps(1)
        job.save()
        wait("end")
        job.finished()
    """
    worker = machine.worker(script=script, every_seconds=PLENTY_S)
    machine.go("up")
    worker.wait_told("Recovered")
    Noticed(worker).give(None, kind="rebalance")
    worker.wait_told("CheckpointCommitted")
    machine.go("end")
    assert worker.end()["outcome"] == "succeeded"
    assert machine.committed() == [(G1, 4)]
    assert [event["leaves"] for event in worker.told("PreemptionNoticed")] == [False]
