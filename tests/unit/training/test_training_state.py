"""What of a state comes back, and what is refused because it does not fit or cannot be kept."""

from __future__ import annotations

import random
from collections import Counter, deque

import numpy as np
import pytest
import torch
from harness import begin, saved, saves
from torch import nn

from orch_workers.training.errors import MismatchError, UnsupportedStateError
from orch_workers.training.slots import Slot

# restoring


def test_a_snapshot_says_what_it_is(agents, monkeypatch):
    agent = agents()
    run = begin(agent, monkeypatch, model=nn.Linear(2, 1))
    run.step(loss=torch.tensor(0.5, requires_grad=True), rate=1, odd=float("nan"))
    run.finish()
    agent.wait_idle()
    header, meta = Slot(str(agent.snapshots[1])).read()
    assert (header.generation, header.step) == ((1, 0), 1)
    assert meta["metrics"] == {"loss": 0.5, "rate": 1, "odd": "nan"}
    assert (meta["step"], meta["epoch"], meta["kind"]) == (1, 0, "state")
    assert meta["frameworks"]["torch"] == torch.__version__
    assert [entry["name"] for entry in meta["entries"]][:2] == ["model.weight", "model.bias"]
    assert all(entry["offset"] % 64 == 0 for entry in meta["entries"])


def test_every_kind_of_argument_comes_back(agents, monkeypatch):
    agent = agents()

    def objects(number):
        return {
            "tensor": torch.full((2,), float(number)),
            "array": np.full((2, 2), number),
            "torch_random": torch.Generator().manual_seed(number),
            "python_random": random.Random(number),
            "numpy_random": np.random.default_rng(number),
            "old_random": np.random.RandomState(number),
            "scaler": torch.amp.GradScaler("cpu", init_scale=float(2**number)),
            "history": [number, (1, 2)],
            "names": {number: "x"},
            "seen": {number},
            "queue": deque([number], 3),
            "counts": Counter({number: 2}),
            "raw": bytearray([number]),
            "best": float(number),
            "nothing": None,
        }

    first, second = objects(3), objects(5)
    saved(begin(agent, monkeypatch, **first))
    run = begin(agent, monkeypatch, **second)
    run.give_up()
    assert second["tensor"].equal(first["tensor"])
    assert np.array_equal(second["array"], first["array"])
    assert torch.rand(1, generator=second["torch_random"]) == torch.rand(1, generator=first["torch_random"])
    assert second["python_random"].random() == first["python_random"].random()
    assert second["numpy_random"].random() == first["numpy_random"].random()
    assert second["old_random"].normal() == first["old_random"].normal()
    assert second["scaler"].get_scale() == 8.0
    for name in ("history", "names", "seen", "queue", "counts", "raw"):
        assert second[name] == first[name]  # in place: the script's own name for it stays right
        assert run.values[name] is second[name]
    assert (run.values["best"], run.values["nothing"]) == (3.0, None)


def test_random_states_come_back(agents, monkeypatch):
    agent = agents()
    saved(begin(agent, monkeypatch))
    expected = (torch.rand(3).tolist(), random.random(), np.random.rand())  # noqa: NPY002
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    begin(agent, monkeypatch).give_up()
    assert (torch.rand(3).tolist(), random.random(), np.random.rand()) == expected  # noqa: NPY002


def test_the_restored_step_is_told_and_not_saved_again(agents, monkeypatch):
    agent = agents()
    saved(begin(agent, monkeypatch))
    run = begin(agent, monkeypatch)
    assert (run.step_count, run.restored_step) == (1, 1)
    run.finish()
    assert saves(agent) == [(1, "first")]
    assert [(told["step"], told["source"]) for told in agent.of("restored")] == [(0, "none"), (1, "memory")]


def test_restoring_can_be_refused(agents, monkeypatch):
    agent = agents()
    saved(begin(agent, monkeypatch))
    run = begin(agent, monkeypatch, restore=False)
    assert (run.step_count, run.restored_step) == (0, None)
    assert [hello["restore"] for hello in agent.of("hello")] == [True, False]
    run.give_up()
    agent.wait_idle()
    assert [note["message"] for note in agent.of("note")] == [
        "restore=False: starts from nothing, not from step 1"
    ]


def test_extra_state_and_tied_weights(agents, monkeypatch):
    class Extra(nn.Module):
        def __init__(self, value):
            super().__init__()
            self.first, self.second = nn.Linear(2, 2), nn.Linear(2, 2)
            self.second.weight = self.first.weight
            self.value = value

        def get_extra_state(self):
            return {"value": self.value}

        def set_extra_state(self, state):
            self.value = state["value"]

    agent = agents()
    saved(begin(agent, monkeypatch, model=Extra((1, 2))))
    other = Extra(None)
    begin(agent, monkeypatch, model=other).give_up()
    assert other.value == (1, 2)
    assert other.second.weight is other.first.weight
    names = [entry["name"] for entry in Slot(str(agent.snapshots[1])).read()[1]["entries"]]
    assert "model.first.weight" in names
    assert "model.second.weight" not in names


# what does not fit

MISMATCHES = [
    (
        {"model": nn.Linear(2, 20)},
        r"model\.weight has shape \[10, 2\] in the checkpoint, \[20, 2\] in this script",
    ),
    ({"model": nn.Linear(2, 10, bias=False)}, "model.bias is in the checkpoint but not in this script"),
    (
        {"model": nn.Sequential(nn.Linear(2, 10))},
        "model.0.weight is in this script but not in the checkpoint",
    ),
    (
        {"model": nn.Linear(2, 10).double()},
        "model.weight is torch.float32 in the checkpoint, torch.float64 in",
    ),
    ({}, r"model \(module\) is in the checkpoint but is not given to orch.training"),
    (
        {"model": nn.Linear(2, 10), "other": nn.Linear(1, 1)},
        r"other \(module\) is given to .* not in the checkpoint",
    ),
    ({"model": [1]}, "model is a module in the checkpoint, a value in this script"),
]


@pytest.mark.parametrize(("objects", "sentence"), MISMATCHES)
def test_what_does_not_fit_is_named_and_told(agents, monkeypatch, objects, sentence):
    agent = agents()
    saved(begin(agent, monkeypatch, model=nn.Linear(2, 10)))
    before = {
        name: value.clone() for name, value in getattr(objects.get("model"), "state_dict", dict)().items()
    }
    with pytest.raises(MismatchError, match=sentence) as mismatch:
        begin(agent, monkeypatch, **objects)
    assert "checkpoint of step 1 (generation 000001.000000)" in str(mismatch.value)
    assert "submit it as a new job" in str(mismatch.value)
    agent.wait_idle()
    assert [told["message"] for told in agent.of("mismatch")] == [str(mismatch.value)]
    assert all(objects["model"].state_dict()[name].equal(value) for name, value in before.items())


def test_a_state_that_its_object_refuses_is_a_mismatch(agents, monkeypatch):
    class Picky:
        def state_dict(self):
            return {"a": 1}

        def load_state_dict(self, state):
            raise KeyError("b")

    agent = agents()
    saved(begin(agent, monkeypatch, picky=Picky()))
    with pytest.raises(MismatchError, match="picky does not take its state: 'b'"):
        begin(agent, monkeypatch, picky=Picky())


def test_plain_values_may_come_and_go(agents, monkeypatch):
    agent = agents()
    saved(begin(agent, monkeypatch, old=1, kept=2))
    run = begin(agent, monkeypatch, kept=0, new=3)
    assert run.values == {"kept": 2, "new": 3}
    run.give_up()
    agent.wait_idle()
    assert len(agent.of("note")) == 2


def test_a_lazy_module_is_restored_before_its_first_forward(agents, monkeypatch):
    agent = agents()
    model = nn.LazyLinear(3)
    model(torch.ones(1, 2))
    saved(begin(agent, monkeypatch, model=model))
    lazy = nn.LazyLinear(3)
    begin(agent, monkeypatch, model=lazy).give_up()
    assert lazy.weight.equal(model.weight)


# what is refused at once


@pytest.mark.parametrize(
    ("objects", "sentence"),
    [
        ({"odd": object()}, "odd: a checkpoint cannot hold a value of type builtins.object"),
        ({"function": print}, "function: a checkpoint cannot hold"),
        ({"values": {"a": [object()]}}, r"values\.a\.0: "),
    ],
)
def test_an_argument_that_cannot_be_kept(agents, monkeypatch, objects, sentence):
    with pytest.raises(UnsupportedStateError, match=sentence):
        begin(agents(), monkeypatch, **objects)


def test_half_a_state_dict(agents, monkeypatch):
    class Half:
        def state_dict(self):
            return {}

    with pytest.raises(UnsupportedStateError, match="no load_state_dict"):
        begin(agents(), monkeypatch, half=Half())


def test_state_of_an_unknown_type_is_refused_at_the_first_save(agents, monkeypatch):
    class Odd:
        def state_dict(self):
            return {"inner": {1: object()}}

        def load_state_dict(self, state):
            pass

    agent = agents()
    run = begin(agent, monkeypatch, odd=Odd())
    with pytest.raises(UnsupportedStateError, match=r"odd\.inner\.1: "):
        run.step()
    run.give_up()
    agent.wait_idle()
    assert agent.of("save") == []
