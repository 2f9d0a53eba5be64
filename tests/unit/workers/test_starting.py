"""A worker whose job begins with another's checkpoint, draws curves and stops early: real processes, no Ray."""

from __future__ import annotations

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from support.workers import JOB

OLD = """
    import numpy, orch
    weights = numpy.zeros(3)
    run = orch.training(weights=weights)
    for _ in range(4):
        weights += 1
        run.step(loss=float(run.step_count))
        run.save()
"""
NEW = """
    import numpy, orch
    weights, more = numpy.zeros(3), numpy.ones(2)
    run = orch.training(weights=weights, more=more)
    assert weights.tolist() == [2.0, 2.0, 2.0], weights
    assert run.step_count == 0
    run.step()
"""
OTHER_SHAPE = """
    import numpy, orch
    run = orch.training(weights=numpy.zeros(9))
    run.step()
"""


def start_of(machine, **more):
    url = str(machine.storage.root / JOB)
    begins = {"url": url, "options": {}, "generation": "000001.000001", "step": 2, "label": "old@2"}
    return {"job_id": "new-1a2b", "start": {**begins, "only": ["weights"], "maps": [], **more}}


def test_a_job_begins_with_another_s_weights_and_says_what_was_loaded(machine):
    assert machine.worker(script=OLD).end()["outcome"] == "succeeded"
    worker = machine.worker(script=NEW, **start_of(machine))
    assert worker.end()["outcome"] == "succeeded", worker.paths.log.read_text()
    (told,) = worker.told("WarmStarted")
    assert (told["source"], told["loaded"], told["missing"]) == ("old@2", 1, [])
    assert not worker.told("Restored"), "nothing of its own was there"
    worker.wait_note("began with old@2: 1 tensors and arguments loaded, all that there was")
    assert not (worker.paths.snapshots / "start").exists()


def test_what_fits_nowhere_fails_the_job_at_once(machine):
    machine.worker(script=OLD).end()
    worker = machine.worker(script=OTHER_SHAPE, **start_of(machine))
    end = worker.end()
    assert end["outcome"] == "failed"
    assert len(worker.told("ProcessStarted")) == 1


def test_a_checkpoint_that_is_gone_blocks_the_job(machine):
    machine.worker(script=OLD).end()
    worker = machine.worker(script=NEW, **start_of(machine, step=99))
    end = worker.end()
    assert end["outcome"] == "blocked"
    assert "000000000099" in end["reason"]


def test_metrics_are_curves_in_storage(machine):
    machine.worker(script=OLD).end()
    found = EventAccumulator(str(machine.storage.root / JOB / "tensorboard")).Reload().Scalars("loss")
    steps = [one.step for one in found]
    assert {1, 4} <= set(steps), "the first and the last are always told"
    assert steps == sorted(set(steps))
    assert all(one.value == one.step - 1 for one in found)


def test_early_stopping_reaches_the_training_process(machine):
    script = """
        import numpy, orch
        run = orch.training(weights=numpy.zeros(3))
        for loss in (3.0, 2.0, 2.0, 2.0, 1.0):
            run.step(loss=loss)
    """
    worker = machine.worker(script=script, stop=("loss", "min", 2))
    end = worker.end()
    assert (end["outcome"], end["step"]) == ("succeeded", 4)
    worker.wait_note("stopped early: loss was best at step 2: 2")
