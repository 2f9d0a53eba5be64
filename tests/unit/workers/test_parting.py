"""A real worker whose cluster has gone: it saves, ends, and gives the machine its memory back."""

from __future__ import annotations

import pytest

from orch_policies.lease import Contact
from orch_workers import ending
from orch_workers.contact import ContactWatch
from orch_workers.parting import forget_memory, leave_cluster
from support.workers import DEAF, LIMIT_S, LISTENS, Failing

G1 = "000001.000001"


def test_when_the_lease_is_over_it_saves_at_its_next_step_and_nothing_stays_in_memory(machine):
    worker = machine.worker(script=LISTENS)
    machine.go("up")
    worker.wait_told("Recovered")
    leave_cluster(worker.worker, worker.paths, "expired", "the cluster is silent")
    end = worker.end()
    assert (end["outcome"], end["reason"], end["step"]) == ("left", "the cluster is silent", 4)
    assert machine.committed() == [(G1, 4)]
    assert not worker.paths.snapshots.exists()
    assert worker.paths.state.exists(), "the journal stays"


def test_where_the_node_was_given_up_the_process_ends_at_once_and_what_it_had_saved_travels(machine):
    worker = machine.worker(script=DEAF)
    machine.go("up")
    leave_cluster(worker.worker, worker.paths, "void", "the cluster has given this node up")
    assert worker.end()["outcome"] == "left"
    assert machine.committed() == [(G1, 2)]
    assert not worker.worker._launcher.running
    assert not worker.paths.snapshots.exists()


def test_what_storage_would_not_take_stays_in_memory(machine, monkeypatch):
    monkeypatch.setattr(ending, "DRAIN_LIMIT_S", 0.2)
    monkeypatch.setattr("orch_workers.parting.LEAVE_S", 1.0)
    worker = machine.worker(script=LISTENS)
    machine.go("up")
    worker.wait_told("Recovered")
    machine.storage.mood = Failing("shards")
    leave_cluster(worker.worker, worker.paths, "expired", "the cluster is silent")
    assert "did not reach storage" in worker.end()["reason"]
    machine.storage.mood = lambda *_: None
    again = machine.worker(2, script="job = Trainee()\njob.steps(1)\njob.save()\njob.finished()")
    assert again.end()["outcome"] == "succeeded"
    assert [event["step"] for event in again.told("Restored")] == [4]


def test_a_worker_that_had_ended_keeps_all_it_has_to_tell(machine):
    worker = machine.worker(script="job = Trainee()\njob.steps(1)\njob.save()\njob.finished()")
    assert worker.end()["outcome"] == "succeeded"
    leave_cluster(worker.worker, worker.paths, "expired", "the cluster is silent")
    assert len(worker.told("WorkerEnded")) == 1
    assert worker.paths.snapshots.exists()


def test_the_memory_of_a_newer_agent_is_left_alone(machine):
    worker = machine.worker(script=LISTENS)
    machine.go("up")
    worker.wait_told("Recovered")
    (worker.paths.state / "journal-000002.jsonl").touch()
    forget_memory(worker.paths)
    assert worker.paths.snapshots.exists()


# asking


class Cluster:
    def __init__(self, *answers):
        self.answers, self.limits = list(answers), []

    def __call__(self, limit_s):
        self.limits.append(limit_s)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def watch(cluster, lease_s=10.0):
    """Each look comes a second after the one before."""
    seconds = iter(range(1000))
    return ContactWatch(cluster, lease_s, lambda *_: None, now=lambda: float(next(seconds)))


def test_it_asks_with_a_limit_and_judges_the_answers():
    cluster = Cluster("alive", *["silent"] * 11)
    watched = watch(cluster)
    assert [watched.look() for _ in range(12)] == ["held"] * 11 + ["expired"]
    assert set(cluster.limits) == {2.0}


@pytest.mark.parametrize("fault", [AttributeError("no such call"), RuntimeError("ours")])
def test_a_fault_of_ours_ends_nobody(fault):
    watched = watch(Cluster(*[fault] * 100))
    assert {watched.look() for _ in range(100)} == {"held"}


def test_the_thread_tells_once_why(monkeypatch):
    monkeypatch.setattr("orch_workers.contact.pause_s", lambda *_: 0.0)
    from queue import SimpleQueue

    told = SimpleQueue()
    watched = ContactWatch(Cluster("dead", "alive", "dead", "dead"), 5.0, lambda *what: told.put(what))
    watched.start()
    assert told.get(timeout=LIMIT_S) == ("void", "the cluster has given this node up")
    watched._thread.join(LIMIT_S)
    assert told.empty()
    assert isinstance(watched._contact, Contact)
