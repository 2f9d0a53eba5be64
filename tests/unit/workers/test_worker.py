"""A worker with a real guard, process, socket and slots, and what it tells its controller."""

from __future__ import annotations

import json

import pytest

from orch_policies.restart import Budgets, History
from orch_workers import worker as workers
from orch_workers.checkpoint.errors import StorageRefused
from orch_workers.errors import SecretsUnavailableError
from orch_workers.process.launch import Launcher
from orch_workers.training.page import Page
from orch_workers.training.slots import READY, Slot
from support.server import wait_for
from support.workers import AT_ONCE, LIMIT_S, Failing, Stuck, good

G1, G2 = "000001.000001", "000001.000002"
NEVER = {"budgets": Budgets(max_failures=0).to_dict()}
SAVE_AND_STAY = """
    job = Trainee()
    job.steps(3)
    job.save()
    wait("go")
"""
# Leaves by SIGTERM, with the code it is started with.
STAYS = """
    import signal
    signal.signal(signal.SIGTERM, lambda *_: sys.exit({code}))
    wait("up")
    signal.pause()
"""


def committed_before(step):
    return {"history": History(highest_step=step, committed_step=step).to_dict()}


# the ordinary ways


def test_a_command_that_knows_nothing_of_orch_succeeds(machine):
    worker = machine.worker(run="true")
    end = worker.end()
    assert (end["outcome"], end["exit_code"]) == ("succeeded", 0)
    assert [event["generation"] for event in worker.told("ProcessStarted")] == [G1]
    assert worker.worker.ended


def test_what_was_saved_last_is_a_checkpoint_when_success_is_told(machine):
    worker = machine.worker(script="job = Trainee(); job.steps(5); job.save('last'); job.finished()")
    assert (worker.end()["outcome"], worker.end()["step"]) == ("succeeded", 5)
    assert machine.committed() == [(G1, 5)]
    assert [event["step"] for event in worker.told("CheckpointCommitted")] == [5]
    worker.wait_note("starts from nothing")


def test_a_last_snapshot_that_was_never_announced_is_a_checkpoint_all_the_same(machine):
    worker = machine.worker(script="job = Trainee(); job.steps(5); job.save('last', say=False); os._exit(0)")
    assert worker.end()["outcome"] == "succeeded"
    assert machine.committed() == [(G1, 5)]


def test_a_killed_process_goes_on_from_memory_and_says_once_at_its_first_new_step_what_was_lost(machine):
    worker = machine.worker(
        script="""
            job = Trainee(load=lambda job: job.step and wait("loaded"))
            if job.step == 0:
                job.steps(3)
                job.save()
                job.steps(2)
                wait("die")
                os.kill(os.getpid(), 9)
            wait("step")
            job.steps(1)
            wait("again")
            job.steps(1)
            job.finished()
        """,
        policy=AT_ONCE,
    )
    machine.go("die")
    worker.wait_told("ProcessStarted", 2)
    wait_for("its page shows the restored step", (machine.workdir / "loaded").exists, LIMIT_S)
    worker.look_at_page()
    assert worker.told("Restored") == []
    machine.go("loaded")
    restored = worker.wait_told("Restored")
    assert (restored["generation"], restored["step"], restored["source"]) == (G2, 3, "memory")
    worker.look_at_page()
    assert [event["generation"] for event in worker.told("Recovered")] == [G1]
    machine.go("step")
    recovered = worker.wait_told("Recovered", 2)
    assert (recovered["generation"], recovered["step"], recovered["lost_steps"]) == (G2, 4, 2)
    machine.go("again")
    assert worker.end()["outcome"] == "succeeded"
    assert len(worker.told("Recovered")) == 2
    assert [event["step"] for event in worker.told("RestartDecided")] == [5]


def test_a_first_start_has_lost_nothing(machine):
    worker = machine.worker(script="job = Trainee(); job.steps(1); wait('go')")
    recovered = worker.wait_told("Recovered")
    assert (recovered["step"], recovered["lost_steps"], recovered["recovery_s"]) == (1, 0, None)
    machine.go("go")
    worker.end()


def test_a_successor_counts_what_its_predecessor_had_reached_as_lost(machine):
    first = machine.worker(script="job = Trainee(); job.steps(3); job.save(); job.steps(6); wait('never')")
    first.wait_told("CheckpointCommitted")
    wait_for("step 9", lambda: first.worker._launcher.progress().step == 9, LIMIT_S)
    first.stop()
    second = machine.worker(attempt=2, script="job = Trainee(); job.steps(1); wait('go')")
    recovered = second.wait_told("Recovered")
    assert (recovered["step"], recovered["lost_steps"]) == (4, 6)


# what must be mended by a person, and what is our own fault


def test_an_empty_storage_blocks_a_job_that_has_committed(machine):
    worker = machine.worker(attempt=2, script="Trainee().steps(1)", policy=committed_before(40))
    end = worker.end()
    assert end["outcome"] == "blocked"
    assert "has no checkpoint, although this job has committed some" in end["reason"]
    assert worker.told("Recovered") == []
    assert "starts from nothing" not in worker.notes()


def test_a_storage_that_refuses_blocks_and_memory_is_kept(machine):
    first = machine.worker(script=SAVE_AND_STAY)
    first.wait_told("CheckpointCommitted")
    first.stop()
    machine.storage.mood = Failing(error=StorageRefused)
    second = machine.worker(attempt=3, script=SAVE_AND_STAY)
    end = second.end()
    assert (end["outcome"], second.gave_up.is_set()) == ("blocked", False)
    assert "a test says no" in end["reason"]
    left = [Slot(str(path)).header() for path in second.paths.snapshots.glob("slot-*")]
    assert (READY, 3) in [(header.state, header.step) for header in left]


def test_secrets_that_cannot_be_opened_block(machine):
    def secrets():
        raise SecretsUnavailableError("the key is missing; set the secrets again")

    worker = workers.Worker(
        machine.config(), machine.worker().reports, secrets, give_up=lambda: pytest.fail("gave up")
    )
    ends = []
    worker._end = lambda outcome, reason, **_: ends.append((outcome, reason))
    worker._guarded(worker._set_up)
    assert ends == [("blocked", "the key is missing; set the secrets again")]


def test_a_fault_of_ours_costs_the_agent_and_not_the_state(machine, monkeypatch):
    first = machine.worker(script=SAVE_AND_STAY)
    first.wait_told("CheckpointCommitted")
    first.stop()

    def start(self, generation):
        raise RuntimeError("a fault of ours")

    with monkeypatch.context() as patch:
        patch.setattr(Launcher, "start", start)
        second = machine.worker(attempt=2, script=SAVE_AND_STAY)
        assert second.gave_up.wait(LIMIT_S)
    assert second.told("WorkerEnded") == []
    assert "a fault of ours" in second.paths.log.read_text()
    second.stop()
    third = machine.worker(attempt=3, script=SAVE_AND_STAY)
    restored = third.wait_told("Restored")
    assert (restored["step"], restored["source"]) == (3, "memory")


@pytest.mark.parametrize("content", [b"", b"short", bytes(4096), None])
def test_a_predecessors_page_that_does_not_read_never_fails_a_start(machine, content):
    paths = machine.config().paths
    paths.make()
    for page in (paths.page, paths.page_fallback):
        if content is None:
            page.mkdir()
        else:
            page.write_bytes(content)
    paths.page_fallback.rmdir() if content is None else None
    worker = machine.worker(script="job = Trainee(); job.steps(2); job.finished()")
    assert (worker.end()["outcome"], worker.end()["step"]) == ("succeeded", 2)


def test_a_page_goes_to_disk_where_shared_memory_has_no_room(machine, monkeypatch):
    real = Page.make

    def make(path):
        if "/shm/" in path:
            raise OSError(28, "No space left on device")
        real(path)

    monkeypatch.setattr(Page, "make", staticmethod(make))
    worker = machine.worker(script="job = Trainee(); job.steps(2); job.finished()")
    assert (worker.end()["outcome"], worker.end()["step"]) == ("succeeded", 2)
    worker.wait_note("the progress page is on disk instead")


# success is written down before anything that takes time


def test_success_is_on_disk_before_the_last_checkpoint_is(machine):
    machine.storage.mood = stuck = Stuck("shards")
    script = "open('ran', 'a').write('x'); job = Trainee(); job.steps(5); job.save('last'); job.finished()"
    first = machine.worker(script=script)
    assert stuck.reached.wait(LIMIT_S)
    wait_for("done.json", first.paths.done.exists, LIMIT_S)
    assert json.loads(first.paths.done.read_text())["step"] == 5
    assert first.told("WorkerEnded") == []
    first.worker.halt()
    stuck.go.set()
    machine.storage.mood = good
    first.stop()
    second = machine.worker(attempt=2, script=script)
    assert (second.end()["outcome"], second.end()["exit_code"], second.end()["step"]) == ("succeeded", 0, 5)
    assert second.told("ProcessStarted") == []
    assert (machine.workdir / "ran").read_text() == "x"
    assert machine.committed() == [(G1, 5)]


def test_a_success_that_cannot_be_written_down_is_told_all_the_same(machine, monkeypatch):
    def write_down(path, document):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(workers, "write_down", write_down)
    worker = machine.worker(script="job = Trainee(); job.steps(5); job.save('last'); job.finished()")
    assert worker.end()["outcome"] == "succeeded"
    assert not worker.gave_up.is_set()
    assert machine.committed() == [(G1, 5)]


def test_a_successor_tells_a_failure_again_that_was_decided_and_journalled(machine):
    first = machine.worker(run="sh -c 'echo x >>ran; exit 3'", policy=NEVER)
    end = first.end()
    assert (end["outcome"], end["exit_code"]) == ("failed", 3)
    second = machine.worker(attempt=2, run="sh -c 'echo x >>ran; exit 3'")
    again = second.end()
    assert {**again, "attempt": 1} == end
    assert second.told("ProcessStarted") == []
    assert (machine.workdir / "ran").read_text() == "x\n"


# outputs


def test_an_output_is_tried_again_after_an_error_that_passes(machine):
    machine.storage.mood = mood = Failing("outputs", times=3)
    worker = machine.worker(run="sh -c 'echo weights >model.bin'", outputs=("model.bin",))
    assert worker.end() | {"reason": ""} == worker.end() | {"reason": "", "outcome": "succeeded"}
    assert mood.seen == 3
    assert machine.files("outputs") == [f"{G1}/model.bin"]
    assert not worker.paths.undelivered.exists()


def test_an_output_that_storage_refuses_stays_and_is_said(machine):
    machine.storage.mood = Failing("outputs", error=StorageRefused)
    worker = machine.worker(run="sh -c 'echo weights >model.bin'", outputs=("model.bin",))
    end = worker.end()
    assert end["outcome"] == "succeeded"
    assert f"1 outputs are still in {machine.workdir}" in end["reason"]
    assert "model.bin" in json.loads(worker.paths.undelivered.read_text())["problems"][0]
    worker.wait_note("an output could not be brought back: model.bin")


def test_outputs_that_cannot_even_be_looked_for_do_not_keep_the_end_from_being_told(machine):
    worker = machine.worker(run="true", outputs=("../elsewhere",))
    end = worker.end()
    assert end["outcome"] == "succeeded"
    assert "does not stay inside the working folder" in end["reason"]
    assert worker.paths.undelivered.exists()
