"""The library for plain scripts: what it saves comes back, and two processes never mix."""

from __future__ import annotations

import doctest
import gc
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from orch_policies.retention import Best, Rules
from orch_workers.checkpoint import (
    Catalog,
    Checkpointer,
    CheckpointError,
    NothingRestorable,
    StorageUnavailable,
    Superseded,
    checkpointer,
    open_storage,
)
from orch_workers.training.errors import UnsupportedStateError
from support import saved


@pytest.fixture
def url(tmp_path):
    return tmp_path / "storage" / "digits"


def steps(url):
    return [one.step for one in Checkpointer(url).list()]


def test_its_examples_are_true(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    failed, tried = doctest.testmod(checkpointer)
    assert tried > 15
    assert failed == 0


# what comes back


def test_values_of_any_kind_come_back_as_they_were(url):
    state = {
        "nested": {"array": np.arange(6).reshape(2, 3), "deep": [(1, {2: "two"}), {3}, b"x" * 300]},
        "number": 1.5,
        "nan": float("nan"),
        "nothing": None,
    }
    Checkpointer(url).save(0, state, epoch=4, metrics={"loss": torch.tensor(0.5), "bad": float("inf")})
    found = Checkpointer(url).restore()
    assert (found.step, found.epoch, found.metrics) == (0, 4, {"loss": 0.5, "bad": "inf"})
    assert found.generation == "000001.000001"
    np.testing.assert_array_equal(found.values["nested"]["array"], state["nested"]["array"])
    assert found.values["nested"]["deep"] == state["nested"]["deep"]
    assert found.values["number"] == 1.5
    assert np.isnan(found.values["nan"])
    assert found.values["nothing"] is None


def training(seed):
    torch.manual_seed(seed)
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters())
    return {"model": model, "optimizer": optimizer, "history": [], "table": np.zeros(2)}


def train(state, count):
    for _ in range(count):
        state["optimizer"].zero_grad()
        loss = state["model"](torch.randn(4, 3)).square().mean()
        loss.backward()
        state["optimizer"].step()
        state["history"].append(loss.item() + random.random() + np.random.rand())  # noqa: NPY002 - the global one is tried
        state["table"] += state["history"][-1]


def test_a_training_that_was_interrupted_ends_as_one_that_was_not(url):
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    whole = training(0)
    train(whole, 3)
    Checkpointer(url).save(3, whole)
    train(whole, 4)
    again = training(99)
    assert Checkpointer(url).restore(again).step == 3
    train(again, 4)
    assert again["history"] == whole["history"]
    for name, value in whole["model"].state_dict().items():
        assert torch.equal(value, again["model"].state_dict()[name])
    np.testing.assert_array_equal(again["table"], whole["table"])


def test_a_part_can_be_restored_alone_and_random_states_left_alone(url):
    state = training(0)
    train(state, 2)
    Checkpointer(url).save(2, state)
    other = training(1)
    before = torch.get_rng_state()
    found = Checkpointer(url).restore({"model": other["model"]}, random=False)
    assert torch.equal(torch.get_rng_state(), before)
    assert found.values == {}
    assert torch.equal(state["model"].weight, other["model"].weight)


def test_what_does_not_fit_is_named_and_nothing_is_changed(url):
    Checkpointer(url).save(1, {"model": torch.nn.Linear(3, 2), "table": np.zeros(2)})
    model, table = torch.nn.Linear(3, 5), np.ones(2)
    weight = model.weight.clone()
    with pytest.raises(CheckpointError) as caught:
        Checkpointer(url).restore({"table": table, "model": model, "other": np.zeros(1)})
    assert "model.weight has shape [2, 3] in the checkpoint, [5, 3]" in str(caught.value)
    assert "other is not in the checkpoint" in str(caught.value)
    assert torch.equal(model.weight, weight)
    assert table.tolist() == [1, 1]


def test_an_earlier_step_is_restored_on_demand(url):
    for step in (1, 2, 3):
        with Checkpointer(url) as checkpoints:
            checkpoints.restore()
            checkpoints.save(step, {"step": step})
    assert Checkpointer(url).restore(step=2).values == {"step": 2}
    with pytest.raises(CheckpointError, match="no checkpoint of step 9"):
        Checkpointer(url).restore(step=9)


def test_nothing_there_is_nothing_restored(url):
    assert Checkpointer(url).restore() is None
    assert Checkpointer(url).list() == []


def test_what_cannot_be_kept_is_refused_with_its_path(url):
    with Checkpointer(url) as checkpoints:
        with pytest.raises(UnsupportedStateError, match=r"model\.layers\.0"):
            checkpoints.save(1, {"model": {"layers": [object()]}})
        checkpoints.save(1, {"model": 1})  # and the slot is free again
    assert steps(url) == [1]


def test_a_damaged_one_is_put_aside_and_the_next_older_taken(url):
    catalog = saved.save(url.parent, {step: {"weights": np.full(9, step)} for step in (1, 2)})
    saved.flip_tensor(catalog, 2, "weights")
    found = Checkpointer(url).restore()
    assert found.step == 1
    assert [bad.step for bad in found.rejected] == [2]
    assert [(one.step, one.is_good) for one in Checkpointer(url).verify()] == [(2, False), (1, True)]
    saved.flip_tensor(catalog, 1, "weights")
    with pytest.raises(NothingRestorable):
        Checkpointer(url).restore()


# what is kept


def test_the_newest_are_kept_and_the_pinned(url):
    with Checkpointer(url, keep=2) as checkpoints:
        for step in range(1, 6):
            checkpoints.save(step, {"step": step})
            if step == 1:
                checkpoints.pin(1, "the first")
        assert [(one.step, one.pinned) for one in checkpoints.list()] == [
            (5, None),
            (4, None),
            (1, "the first"),
        ]
        checkpoints.unpin(1)
        checkpoints.save(6, {"step": 6})
    assert 4 not in steps(url)


def test_rules_can_be_given_whole(url):
    with Checkpointer(url, keep=Rules(last=1, best=Best("loss"))) as checkpoints:
        for step, loss in enumerate([3, 1, 2, 4]):
            checkpoints.save(step, {"step": step}, metrics={"loss": loss})
    assert steps(url) == [3, 1]


# in the background


def test_in_the_background_the_state_of_the_moment_is_saved(url, monkeypatch):
    """Changed while it is being written; and no third copy is made while two are on their way."""
    may_write, writing = threading.Event(), threading.Event()
    commit = checkpointer.commit

    def waiting(catalog, slot, **more):
        writing.set()
        assert may_write.wait(60)
        return commit(catalog, slot, **more)

    monkeypatch.setattr(checkpointer, "commit", waiting)
    array = np.zeros(1000)
    with Checkpointer(url, background=True) as checkpoints:
        for step in (1, 2):
            array[:] = step
            checkpoints.save(step, {"array": array})
        assert writing.wait(60)
        array[:] = 99
        assert checkpoints.list() == []
        third = threading.Thread(target=checkpoints.save, args=(3, {"array": array}))
        third.start()
        assert checkpoints._free.empty()
        may_write.set()
        third.join(60)
        checkpoints.wait()
        assert [one.step for one in checkpoints.list()] == [3, 2, 1]
    for step, value in ((1, 1), (2, 2), (3, 99)):
        assert Checkpointer(url).restore(step=step).values["array"].tolist() == [value] * 1000


def test_what_fails_in_the_background_is_raised_by_wait_and_by_the_next_save(url, monkeypatch, caplog):
    def fails(catalog, slot, **more):
        raise StorageUnavailable("the disk is full")

    commit = checkpointer.commit
    monkeypatch.setattr(checkpointer, "commit", fails)
    checkpoints = Checkpointer(url, background=True, patience_s=0)
    checkpoints.save(1, {"a": 1})
    with pytest.raises(StorageUnavailable, match="the disk is full"):
        checkpoints.wait()
    assert "the checkpoint of step 1 is not in" in caplog.text
    checkpoints.wait()  # told once
    checkpoints.save(2, {"a": 1})
    checkpoints._written[0].exception()
    with pytest.raises(StorageUnavailable):
        checkpoints.save(3, {"a": 1})
    monkeypatch.setattr(checkpointer, "commit", commit)
    checkpoints.save(3, {"a": 3})
    checkpoints.close()
    assert steps(url) == [3]


def test_storage_that_is_away_for_a_moment_is_tried_again(url, monkeypatch, caplog):
    commit, away = checkpointer.commit, [1, 2]

    def sometimes(catalog, slot, **more):
        if away:
            away.pop()
            raise StorageUnavailable("away")
        return commit(catalog, slot, **more)

    monkeypatch.setattr(checkpointer, "commit", sometimes)
    monkeypatch.setattr(checkpointer, "RETRY_MIN_S", 0.001)
    with Checkpointer(url) as checkpoints:
        checkpoints.save(1, {"a": 1})
    assert steps(url) == [1]
    assert caplog.text.count("trying again") == 2


def test_the_scripts_own_error_is_the_one_that_is_seen(url, monkeypatch):
    def fails(catalog, slot, **more):
        raise StorageUnavailable("away")

    monkeypatch.setattr(checkpointer, "commit", fails)

    def script():
        with Checkpointer(url, background=True, patience_s=0) as checkpoints:
            checkpoints.save(1, {"a": 1})
            raise KeyError("mine")

    with pytest.raises(KeyError):
        script()


# several processes


def test_who_saves_first_after_restoring_goes_on_alone(url):
    Checkpointer(url).save(10, {"by": "first"})
    one, other = Checkpointer(url), Checkpointer(url)
    one.restore()
    other.restore()
    one.save(11, {"by": "one"})
    with pytest.raises(Superseded, match="restore again to take over"):
        other.save(12, {"by": "other"})
    one.save(13, {"by": "one"})
    assert Checkpointer(url).restore().values == {"by": "one"}
    other.restore()
    other.save(14, {"by": "other"})
    with pytest.raises(Superseded):
        one.save(15, {"by": "one"})
    assert Checkpointer(url).restore().step == 14


def test_two_at_the_very_same_moment_never_share_a_generation(url):
    """Both look, then both begin."""
    Checkpointer(url).save(1, {"a": 0})
    both = [Checkpointer(url), Checkpointer(url)]
    for checkpoints in both:
        checkpoints.restore()
    for checkpoints in both:
        checkpoints._assert_free = lambda: None  # neither sees the other in its last look
    outcomes = []
    for number, checkpoints in enumerate(both):
        try:
            checkpoints.save(2, {"a": number})
            outcomes.append("saved")
        except Superseded:
            outcomes.append("late")
    assert outcomes == ["saved", "late"]


def test_whoever_began_meanwhile_is_seen_whatever_its_number(url):
    """A restart within the same attempt, as orch itself numbers them."""
    Checkpointer(url).save(1, {"a": 0})
    checkpoints = Checkpointer(url)
    checkpoints.restore()
    checkpoints.catalog.begin_generation((1, 2), (1, 1), 1)
    with pytest.raises(Superseded):
        checkpoints.save(2, {"a": 1})


def test_nothing_is_ever_begun_anew_in_silence(url):
    Checkpointer(url).save(10, {"a": 1})
    with pytest.raises(CheckpointError, match="none was restored"):
        Checkpointer(url).save(11, {"a": 2})
    with Checkpointer(url, start_over=True) as anew:
        anew.save(1, {"a": 3})
    assert Checkpointer(url).restore().values == {"a": 3}


def test_steps_rise(url):
    with Checkpointer(url) as checkpoints:
        checkpoints.save(5, {"a": 1})
        for step in (5, 4, -1, True, 1.5):
            with pytest.raises(ValueError, match="step"):
                checkpoints.save(step, {"a": 1})
    with Checkpointer(url) as checkpoints:
        checkpoints.restore()
        with pytest.raises(ValueError, match="before step 5"):
            checkpoints.save(4, {"a": 1})
        checkpoints.save(5, {"a": 2})
    assert Checkpointer(url).restore().values == {"a": 2}


def test_going_back_to_an_earlier_step_leaves_the_later_ones_behind(url):
    with Checkpointer(url) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, {"step": step})
        checkpoints.restore(step=1)
        checkpoints.save(2, {"step": "other"})
    assert [(one.step, one.on_chain) for one in Checkpointer(url).list()] == [(2, True), (1, True)]
    assert Checkpointer(url).restore().values == {"step": "other"}


def test_a_job_of_orch_can_be_read_and_is_never_taken_over(url):
    catalog = saved.save(url.parent, {1: {"a": 1}})
    catalog.storage.create(catalog.path("job.json"), b"{}")
    checkpoints = Checkpointer(url)
    assert checkpoints.restore().values == {"a": 1}
    with pytest.raises(CheckpointError, match="is a job of orch"):
        checkpoints.save(2, {"a": 2})


# limits and leftovers


@pytest.mark.parametrize("bad", ["", "Digits", "a/UPPER", "s3://bucket", "under_score"])
def test_a_url_that_ends_with_no_name_is_refused(bad, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"allowed as a name|nothing but a bucket"):
        Checkpointer(bad or "/")


@pytest.mark.parametrize("bad", [{}, [], {"~orch": 1}, {1: 2}, {"": 1}])
def test_a_state_without_names_is_refused(url, bad):
    with pytest.raises(ValueError, match=r"name|dict"):
        Checkpointer(url).save(1, bad)


def test_nothing_is_left_in_memory_or_on_disk(url):
    def held():
        return sorted(Path("/dev/shm").glob("orch-restore-*")), len(list(Path("/proc/self/fd").iterdir()))

    gc.collect()
    before = held()
    with Checkpointer(url, background=True) as checkpoints:
        checkpoints.save(1, {"a": np.zeros(1000)})
        checkpoints.save(2, {"a": np.zeros(100_000)})
        checkpoints.restore()
    checkpoints.close()
    with pytest.raises(ValueError, match="is closed"):
        checkpoints.save(3, {"a": 1})
    assert held() == before


def test_neither_ray_nor_a_framework_is_imported():
    code = (
        "import sys; from orch_workers.checkpoint import Checkpointer;"
        "print([name for name in ('ray', 'torch', 'tensorflow', 's3fs', 'sqlalchemy') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"


def test_the_standalone_example_survives_ctrl_c(tmp_path):
    """As a person does it: started, interrupted, started again; the end is that of a run without interruption."""
    script = Path(__file__).parents[3] / "examples/standalone/train.py"

    def start(folder, *options):
        command = [sys.executable, "-u", str(script), "--steps", "60", "--checkpoints", str(folder), *options]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path)

    first = start(tmp_path / "interrupted", "--pause", "0.02")
    assert first.stdout is not None
    for line in first.stdout:
        if line.startswith("step 20:"):
            first.send_signal(signal.SIGINT)
            break
    rest = first.stdout.read()
    first.stdout.close()
    assert first.wait(60) == 130
    assert "saved" in rest
    with start(tmp_path / "interrupted") as second, start(tmp_path / "whole") as undisturbed:
        resumed, whole = second.communicate(timeout=100)[0], undisturbed.communicate(timeout=100)[0]
    assert resumed.startswith("went on from step ")
    assert resumed.splitlines()[-1] == whole.splitlines()[-1]
    assert whole.splitlines()[-1].startswith("final loss ")
    catalog = Catalog(open_storage(str(tmp_path)), "interrupted")
    assert catalog.restore_points()[0].step == 60
