"""A worker that is told to stop, at every bad moment."""

from __future__ import annotations

import threading

import pytest

from orch_policies.restart import Budgets
from orch_workers import ending
from orch_workers.process.guarded import Exited
from orch_workers.process.launch import Launcher
from orch_workers.sweep import sweep_job
from support.processes import is_alive
from support.server import wait_for
from support.workers import AT_ONCE, LIMIT_S, Failing, Stuck

G1 = "000001.000001"
GRACE_S = 20.0
STAYS = """
    import signal
    signal.signal(signal.SIGTERM, lambda *_: sys.exit({code}))
    wait("up")
    signal.pause()
"""


class Held:
    """Keeps the worker's loop from taking the next event until `go`."""

    def __init__(self, worker):
        self.go, reached = threading.Event(), threading.Event()

        def hold():
            reached.set()
            assert self.go.wait(LIMIT_S)

        worker.worker._inbox.put(hold)
        assert reached.wait(LIMIT_S)


# before there is a process


@pytest.mark.parametrize("outcome", ["stopped", "left"])
def test_a_stop_while_set_up_waits_for_storage_is_no_fault_of_the_job(machine, outcome):
    machine.storage.mood = Failing("generations")
    worker = machine.worker(run="sh -c 'echo x >>ran'")
    worker.wait_note("storage:")  # told while the loop is busy with waiting
    worker.worker.stop(outcome, GRACE_S)
    assert worker.end()["outcome"] == outcome
    assert not (machine.workdir / "ran").exists()
    assert not worker.gave_up.is_set()


def test_a_stop_while_the_process_waits_for_what_it_restores_does_not_block_the_job(machine):
    machine.storage.mood = Failing("manifests")
    worker = machine.worker(
        script="import signal; signal.signal(signal.SIGTERM, lambda *_: sys.exit(3)); Trainee()"
    )
    worker.wait_told("ProcessStarted")
    worker.wait_note("storage:")
    wait_for("its hello", lambda: worker.worker._launcher._session.owner, LIMIT_S)
    worker.worker.stop("left", GRACE_S)
    assert worker.end()["outcome"] == "left"
    assert worker.told("RestartDecided") == []


def test_a_stop_between_two_starts_starts_nothing_more(machine):
    slow = {"budgets": Budgets(backoff_initial_s=600.0, backoff_max_s=600.0).to_dict()}
    slow["history"] = {"highest_step": 0, "committed_step": 0, "fruitless": 1, "own_exits": []}
    worker = machine.worker(run="sh -c 'kill -9 $$'", policy=slow)
    worker.wait_told("RestartDecided")
    worker.worker.stop("stopped", GRACE_S)
    assert worker.end()["outcome"] == "stopped"
    assert len(worker.told("ProcessStarted")) == 1


# while a process runs


def test_a_process_that_listens_saves_and_leaves(machine):
    worker = machine.worker(
        script="""
            job = Trainee()
            job.steps(3)
            wait("up")
            while not job.page.read_word().stop:
                pass
            job.save("stop")
            sys.exit(75)
        """
    )
    machine.go("up")
    worker.wait_told("Recovered")
    worker.worker.stop("left", GRACE_S)
    end = worker.end()
    assert (end["outcome"], end["exit_code"], end["step"]) == ("left", 75, 3)
    assert machine.committed() == [(G1, 3)]


@pytest.mark.parametrize("code", [0, 3])
def test_after_a_stop_no_exit_is_a_success_or_a_reason_to_start_again(machine, code):
    worker = machine.worker(script=STAYS.format(code=code), policy=AT_ONCE)
    machine.go("up")
    worker.worker.stop("stopped", GRACE_S)
    end = worker.end()
    assert (end["outcome"], end["exit_code"]) == ("stopped", code)
    assert worker.told("RestartDecided") == []
    assert not worker.paths.done.exists()


def test_who_said_finished_before_has_succeeded_whatever_came_meanwhile(machine):
    script = "job = Trainee(); job.steps(2); job.finished()\n" + STAYS.format(code=0)
    worker = machine.worker(script="\n".join(line.strip() for line in script.splitlines()))
    machine.go("up")
    worker.worker.stop("stopped", 1.0)
    assert worker.end()["outcome"] == "succeeded"


def test_an_exit_before_the_stop_is_a_success_although_the_rest_of_its_tree_ends_after_it(machine):
    worker = machine.worker(
        script="""
            import signal
            if os.fork() == 0:
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                wait("up")
                signal.pause()
            wait("down")
        """
    )
    worker.wait_told("ProcessStarted")
    machine.go("up")
    process, seen = worker.worker._launcher._process, []
    process._on_event = lambda event, tell=process._on_event: (seen.append(event), tell(event))
    machine.go("down")
    wait_for("its exit", lambda: seen, LIMIT_S)
    assert isinstance(seen[-1], Exited)  # `Gone` comes when the child has had its time
    worker.worker.stop("stopped", GRACE_S)
    assert (worker.end()["outcome"], worker.end()["exit_code"]) == ("succeeded", 0)


def test_an_exit_that_is_looked_at_after_the_stop_starts_nothing_more(machine):
    worker = machine.worker(script="wait('up'); sys.exit(3)", policy=AT_ONCE)
    worker.wait_told("ProcessStarted")
    held = Held(worker)
    machine.go("up")
    wait_for("its exit waits", lambda: not worker.worker._launcher.running, LIMIT_S)
    wait_for("its exit waits", lambda: not worker.worker._inbox.empty(), LIMIT_S)
    worker.worker.stop("stopped", GRACE_S)
    held.go.set()
    end = worker.end()
    assert (end["outcome"], end["exit_code"]) == ("stopped", 3)
    assert len(worker.told("ProcessStarted")) == 1


def test_a_stop_shortens_the_wait_for_storage_after_success(machine, monkeypatch):
    monkeypatch.setattr(ending, "DRAIN_LIMIT_S", 0.0)
    monkeypatch.setattr(ending, "DRAIN_SLICE_S", 0.05)
    machine.storage.mood = mood = Failing("shards")
    worker = machine.worker(script="job = Trainee(); job.steps(2); job.save('last'); job.finished()")
    wait_for("success is noted", worker.paths.done.exists, LIMIT_S)
    wait_for("more than one slice", lambda: mood.seen > 10, LIMIT_S)
    assert worker.told("WorkerEnded") == []
    worker.worker.stop("stopped", GRACE_S)
    end = worker.end()
    assert end["outcome"] == "succeeded"
    assert "its newest snapshot did not reach storage" in end["reason"]


def test_a_grace_of_nothing_kills_at_once(machine):
    worker = machine.worker(run="sleep 1000")
    pid = worker.wait_told("ProcessStarted")["pid"]
    worker.worker.stop("stopped", 0)
    assert worker.end()["outcome"] == "stopped"
    assert not is_alive(pid)


# the job is over for the controller


def test_halt_ends_what_runs_before_it_returns(machine):
    worker = machine.worker(
        script="import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); wait('up'); signal.pause()"
    )
    pid = worker.wait_told("ProcessStarted")["pid"]
    machine.go("up")
    worker.worker.halt()
    assert not is_alive(pid)
    sweep_job(worker.paths)


def test_halt_does_not_wait_for_storage_that_is_stuck(machine):
    machine.storage.mood = stuck = Stuck("shards")
    worker = machine.worker(script="job = Trainee(); job.steps(1); job.save(); wait('up')")
    pid = worker.wait_told("ProcessStarted")["pid"]
    assert stuck.reached.wait(LIMIT_S)
    worker.worker.halt()
    assert not is_alive(pid)
    stuck.go.set()


def test_halt_ends_a_start_that_is_under_way(machine, monkeypatch):
    real, reached, go = Launcher.start, threading.Event(), threading.Event()

    def start(self, generation):
        reached.set()
        assert go.wait(LIMIT_S)
        return real(self, generation)

    monkeypatch.setattr(Launcher, "start", start)
    worker = machine.worker(run="sleep 1000")
    assert reached.wait(LIMIT_S)
    worker.worker.halt()
    go.set()
    assert not is_alive(worker.wait_told("ProcessStarted")["pid"])
