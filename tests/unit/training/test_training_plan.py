"""A plan is used again while everything is where it was, and for nothing else: each way in which a state can move."""

from __future__ import annotations

import weakref

import pytest
import torch
from plans import Kept, Net, shares, step, trained
from torch import nn

from orch_workers.training.errors import UnsupportedStateError


@pytest.fixture
def kept(tmp_path):
    model, optimizer = trained()
    made = Kept(tmp_path, model=model, optimizer=optimizer)
    made.save()
    return made


def test_a_steady_state_keeps_its_plan_and_saves_what_is_there_now(kept):
    for _ in range(3):
        step(kept.objects["model"], kept.objects["optimizer"])
        kept.check()
    assert kept.planner.plans_made == 1


def test_what_requires_gradients_makes_no_difference(kept):
    kept.objects["model"].first.weight.requires_grad_(False)
    kept.check()
    assert kept.planner.plans_made == 1


def test_adam_allocates_after_the_first_step(tmp_path):
    model = Net()
    optimizer = torch.optim.Adam(model.parameters())
    kept = Kept(tmp_path, model=model, optimizer=optimizer)
    kept.check()
    step(model, optimizer)
    kept.check()
    assert kept.planner.plans_made == 2


def test_tying_and_untying_are_seen(kept):
    model = kept.objects["model"]
    assert shares(kept.save()["model"]) == set()
    model.third.weight = model.second.weight
    assert shares(kept.save()["model"]) == {frozenset({"second.weight", "third.weight"})}
    model.third.weight = nn.Parameter(model.second.weight.detach().clone())
    assert shares(kept.save()["model"]) == set()
    model.third.weight.data = model.second.weight.data
    assert shares(kept.save()["model"]) == {frozenset({"second.weight", "third.weight"})}


def test_what_shares_memory_with_something_captured_each_time_shares_it_again(tmp_path):
    class Average:
        def __init__(self, tensor):
            self.tensor = tensor

        def state_dict(self):
            return {"tensor": self.tensor, "own": torch.ones(3)}

        def load_state_dict(self, state):
            pass

    model = nn.Linear(2, 2)
    kept = Kept(tmp_path, average=Average(model.weight.detach()), model=model)
    kept.check()
    found = kept.planner.snapshot({}, {"step": 1})
    assert [entry.name for entry, _ in found.rest.placed] == ["average.own"]


def test_values_are_captured_every_time(tmp_path):
    model, optimizer = trained(torch.optim.SGD, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    generator = torch.Generator()
    kept = Kept(tmp_path, model=model, optimizer=optimizer, scheduler=scheduler, generator=generator)
    kept.check()
    for _ in range(3):
        step(model, optimizer)
        scheduler.step()
        torch.rand(3, generator=generator)
        optimizer.param_groups[0]["momentum"] *= 0.5
        kept.check()
    assert kept.planner.plans_made == 1


def test_numbers_in_an_optimizers_state_are_captured_every_time(tmp_path):
    model, optimizer = trained()
    for state in optimizer.state.values():
        state["count"] = 1
    kept = Kept(tmp_path, model=model, optimizer=optimizer)
    kept.check()
    for state in optimizer.state.values():
        state["count"] += 2**60
    kept.check()
    assert kept.planner.plans_made == 1


@pytest.mark.parametrize("kind", ["LBFGS", "Adafactor", "SparseAdam", "ASGD"])
def test_optimizers_with_another_kind_of_state(tmp_path, kind):
    torch.manual_seed(0)
    embedding = nn.Embedding(4, 3, sparse=kind == "SparseAdam")
    optimizer = getattr(torch.optim, kind)(embedding.parameters())
    kept = Kept(tmp_path, model=embedding, optimizer=optimizer)

    def closure():
        optimizer.zero_grad()
        loss = (embedding(torch.tensor([0, 2])) ** 2).sum()
        loss.backward()
        return loss

    for _ in range(3):
        kept.check()
        optimizer.step(closure)


def test_a_module_with_a_state_dict_of_its_own_is_asked_each_time(tmp_path):
    class Own(nn.Linear):
        count = 0

        def state_dict(self, *arguments, **options):
            self.count += 1
            return {"weight": self.weight.detach() * self.count}

    own = Own(2, 2)
    kept = Kept(tmp_path, model=own, other=nn.Linear(2, 2))
    first, second = kept.save()["model"]["weight"], kept.save()["model"]["weight"]
    assert second.equal(first * own.count / (own.count - 1))
    assert kept.planner.plans_made == 1


def test_names_that_an_unwatched_module_gives_are_looked_up_each_time(tmp_path):
    model, optimizer = trained()
    model.second.register_state_dict_post_hook(lambda *_: None)
    kept = Kept(tmp_path, model=model, optimizer=optimizer)
    kept.check()
    model.add_module("zeroth", model._modules.pop("first"))
    kept.check()
    assert "model.zeroth.weight" in kept.save()["optimizer"]["state"]


def test_what_cannot_be_kept_is_refused_and_what_can_again_is_kept(kept):
    model = kept.objects["model"]
    model.mask = torch.ones(4).to_sparse()
    for _ in range(2):
        with pytest.raises(UnsupportedStateError, match=r"model\.mask: .*sparse"):
            kept.save()
    model.mask = torch.ones(4)
    kept.check()


def test_all_sizes_and_layouts_are_copied(tmp_path):
    """Small ones, kept views, views made anew, strided and empty ones; each kind of copy has its own."""
    torch.manual_seed(1)
    model = nn.ParameterList(
        [torch.randn(n) for n in (0, 1, 15, 16 << 10, 1 << 18, (5 << 20) + 1)]
        + [torch.randn(3, 4, 5, 6).to(memory_format=torch.channels_last), torch.randn(6, 4)[:, :3]]
        + [torch.ones(2, dtype=torch.bfloat16)]
    )
    odd = {"odd": torch.randn(4, 4).t()[1:], "conjugated": torch.randn(2, dtype=torch.complex64).conj()}
    kept = Kept(tmp_path, model=model, tensor=torch.randn(7), **odd)
    kept.check()
    plan = kept.planner._plan
    assert [len(found) for found in (plan._small, plan._kept, plan._viewed, plan._strided)] == [4, 1, 2, 3]
    with torch.no_grad():
        for parameter in model:
            parameter.mul_(2)
    kept.check()
    assert kept.planner.plans_made == 1


def test_memory_that_a_script_lets_go_of_is_not_kept(tmp_path):
    model, optimizer = trained()
    model.large = nn.Parameter(torch.zeros(1 << 19))
    kept = Kept(tmp_path, model=model, optimizer=optimizer)
    kept.check()
    storage = weakref.ref(model.large.untyped_storage())
    old = weakref.ref(model.large)
    model.large = None
    assert old() is None
    assert storage() is None


# at random
