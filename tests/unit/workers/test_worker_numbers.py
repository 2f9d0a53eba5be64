"""A loss that is no number: stop, or go back to before it, in a worker with a real process, slots and storage."""

from __future__ import annotations

import json

import pytest

from orch_policies.restart import Budgets
from orch_workers.numbers import LossWatch, Stretch, bad_losses
from orch_workers.poison import is_poisoned

G1, G2 = "000001.000001", "000001.000002"
ROLLBACK = {"budgets": Budgets(backoff_initial_s=0.0, on_nan="rollback").to_dict()}
# Saves at 3, where all is well, and at 6, after the loss of step 5 was bad; then it waits to be ended.
GOES_BAD = """
    def metrics(job, loss):
        job.tell("metrics", step=job.step, epoch=0, values={"loss": loss})

    job = Trainee()
    if job.step == 0:
        job.steps(3)
        metrics(job, 0.5)
        job.save()
        job.steps(3)
        job.save()
        wait("bad")
        job.step = 5
        metrics(job, "nan")
        wait("never")
    job.steps(2)
    job.finished()
"""


def test_a_loss_that_is_no_number_stops_the_job_and_says_where(machine):
    worker = machine.worker(script=GOES_BAD)
    worker.wait_told("CheckpointCommitted", 1)
    machine.go("bad")
    end = worker.end()
    assert end["outcome"] == "failed"
    assert end["reason"].startswith(
        "bad numbers at step 5: loss is nan; step 3 was the last one known to be good; stopped, as "
        "`restart.on_nan` says"
    )
    (exited,) = worker.told("ProcessExited")
    assert (exited["cause"], exited["evidence"]) == ("bad_numbers", "its agent ended it")
    worker.wait_note("loss is nan at step 5; the checkpoints of steps 6 are marked poisoned")
    again = machine.worker(attempt=2, script=GOES_BAD)
    again.end()
    assert again.told("Restored") == [], "a failure that is journalled is not tried again"


def test_it_goes_back_to_the_newest_state_before_the_first_bad_value(machine):
    worker = machine.worker(script=GOES_BAD, policy=ROLLBACK)
    worker.wait_told("CheckpointCommitted", 2)
    machine.go("bad")
    assert worker.end()["outcome"] == "succeeded"
    (decided,) = worker.told("RestartDecided")
    assert (decided["charge_to"], decided["failure"]["kind"]) == ("failures", "bad_numbers")
    assert "rolling back (1 of 3)" in decided["reason"]
    (restored,) = worker.told("Restored")
    assert (restored["generation"], restored["step"]) == (G2, 3)
    assert machine.files("quarantine") == [f"{G1}/000000000006.json"]
    mark = (machine.storage.root / "digits-1a2b" / "quarantine" / G1 / "000000000006.json").read_text()
    assert "poisoned: loss is nan at step 5" in json.dumps(json.loads(mark))
    assert (G1, 6) in machine.committed(), "kept for people to look at"


def test_memory_of_the_bad_stretch_is_gone_also_for_the_next_agent(machine):
    first = machine.worker(script=GOES_BAD.replace("job.steps(2)", "wait('second')"), policy=ROLLBACK)
    first.wait_told("CheckpointCommitted", 2)
    machine.go("bad")
    first.wait_told("Restored")
    first.stop()
    second = machine.worker(attempt=2, script=GOES_BAD)
    assert second.wait_told("Restored")["step"] == 3


def test_a_state_that_is_bad_at_its_first_step_is_bad_itself():
    watch = LossWatch()
    watch.restored(40)
    failure = watch.look(41, {"loss": "inf", "accuracy": 0.1})
    assert failure is not None
    assert failure.message == "loss is inf; step 40 was the last one known to be good"
    assert watch.stretch == Stretch(39, 40, 41, "the step after it was bad: loss is inf at step 41")


def test_it_is_told_once_and_a_new_start_begins_anew():
    watch = LossWatch()
    assert watch.look(1, {"loss": 1.0}) is None
    assert watch.look(9, {"loss": "nan"}) is not None
    assert watch.look(10, {"loss": "nan"}) is None
    watch.began()
    assert watch.look(10, {"loss": "nan"}) is not None


@pytest.mark.parametrize(
    ("values", "bad"),
    [
        ({"loss": "nan"}, True),
        ({"val_loss": "-inf", "loss": 1.0}, True),
        ({"trainLoss": "inf"}, True),
        ({"perplexity": "inf"}, False),
        ({"loss_scale": "inf"}, False),
        ({"loss": 1e308}, False),
        ({}, False),
    ],
)
def test_what_counts_as_a_bad_loss(values, bad):
    assert bool(bad_losses(values)) is bad


@pytest.mark.parametrize(
    ("step", "loss", "poisoned"),
    [(10, "nan", False), (11, 0.5, False), (11, "nan", True), (20, 0.5, True), (25, 0.5, True)],
)
def test_between_the_last_good_and_the_first_bad_step_each_state_speaks_for_itself(step, loss, poisoned):
    """A loss on a GPU is told late."""
    assert is_poisoned(Stretch(10, 20, 20, "x"), step, {"loss": loss}) is poisoned
