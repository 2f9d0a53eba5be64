"""A plan is used again while everything is where it was, and for nothing else: each way in which a state can move."""

from __future__ import annotations

import copy
import random
import types
import weakref

import pytest
import torch
from plans import Kept, shares
from torch import nn

from orch_workers.training.errors import UnsupportedStateError


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.norm = nn.BatchNorm1d(4)
        self.second = nn.Linear(4, 4)
        self.third = nn.Linear(4, 4)
        self.register_buffer("mask", torch.ones(4))
        self.register_buffer("scratch", torch.ones(2), persistent=False)
        self.register_buffer("nothing", None)

    def forward(self, x):
        return self.third(self.second(self.norm(self.first(x))))


def step(model, optimizer):
    optimizer.zero_grad()
    (model(torch.randn(5, 3)) ** 2).sum().backward()
    optimizer.step()


def trained(kind=torch.optim.Adam, **options):
    torch.manual_seed(0)
    model = Net()
    optimizer = kind(model.parameters(), lr=0.1, **options)
    step(model, optimizer)
    return model, optimizer


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


def _data(model, optimizer):
    model.first.weight.data = torch.randn(4, 3)


def _same_address_other_shape(model, optimizer):
    model.first.weight.data = model.first.weight.data.view(3, 4)


def _same_address_other_strides(model, optimizer):
    model.second.weight.data = model.second.weight.data.t()


def _same_address_other_dtype(model, optimizer):
    model.second.weight.requires_grad_(False)
    model.second.weight.data = model.second.weight.data.view(torch.int32)


def _same_address_fewer(model, optimizer):
    model.second.weight.data = model.second.weight.data[:2]


def _same_address_negated(model, optimizer):
    model.mask.data = torch._neg_view(model.mask.data)


def _same_address_conjugated(model, optimizer):
    model.waves.data = model.waves.data.conj()


def _resized(model, optimizer):
    model.mask.resize_(2)


def _set(model, optimizer):
    model.mask.set_(torch.randn(4))


def _parameter_replaced(model, optimizer):
    model.second.weight = nn.Parameter(torch.randn(4, 4))


def _parameter_added(model, optimizer):
    model.extra = nn.Parameter(torch.randn(2))


def _parameter_removed(model, optimizer):
    model.second.bias = None


def _parameter_renamed(model, optimizer):
    parameters = model.second._parameters
    parameters["other"] = parameters.pop("bias")


def _module_added(model, optimizer):
    model.fourth = nn.Linear(2, 2)


def _module_replaced(model, optimizer):
    model.second = nn.Linear(4, 4)


def _module_removed(model, optimizer):
    model.third = None


def _modules_swapped(model, optimizer):
    model.second, model.third = model.third, model.second


def _module_renamed(model, optimizer):
    model._modules["other"] = model._modules.pop("third")


def _buffer_replaced(model, optimizer):
    model.mask = torch.randn(4)


def _buffer_in_place_of_none(model, optimizer):
    model.nothing = torch.randn(4)


def _buffer_no_longer_saved(model, optimizer):
    model._non_persistent_buffers_set.add("mask")


def _buffer_saved_now(model, optimizer):
    model._non_persistent_buffers_set.clear()


def _tied(model, optimizer):
    model.third.weight = model.second.weight


def _tied_by_data(model, optimizer):
    model.third.weight.data = model.second.weight.data


def _to_double(model, optimizer):
    model.double()


def _to_half_and_back(model, optimizer):
    model.half().float()


def _model_loaded(model, optimizer):
    model.load_state_dict(Net().state_dict(), strict=False)


def _model_loaded_by_assigning(model, optimizer):
    model.load_state_dict(Net().state_dict(), strict=False, assign=True)


def _optimizer_loaded(model, optimizer):
    optimizer.load_state_dict(trained()[1].state_dict())


def _group_added(model, optimizer):
    optimizer.add_param_group({"params": [nn.Parameter(torch.randn(2))], "lr": 0.5})


def _group_order(model, optimizer):
    optimizer.param_groups[0]["params"].reverse()


def entry_of(model, optimizer):
    if model.first.weight not in optimizer.state:
        raise KeyError("asking would make it")
    return optimizer.state[model.first.weight]


def _state_key_added(model, optimizer):
    entry_of(model, optimizer)["max_exp_avg_sq"] = torch.randn(4, 3)


def _state_key_removed(model, optimizer):
    del entry_of(model, optimizer)["exp_avg"]


def _state_replaced_by_its_equal(model, optimizer):
    state = entry_of(model, optimizer)
    state["step"] = state["step"].clone()
    state["step"] += 1


def _state_tensor_to_number(model, optimizer):
    entry_of(model, optimizer)["step"] = 7


def _state_of_one_gone(model, optimizer):
    del optimizer.state[model.first.weight]


def _state_of_none_left(model, optimizer):
    optimizer.state.clear()


def _state_by_a_name(model, optimizer):
    optimizer.state["shared"] = {"count": 3, "sum": torch.randn(3)}


def _entry_of_another_kind(model, optimizer):
    optimizer.state[model.first.weight] = [torch.randn(2)]


def _nested_state(model, optimizer):
    entry_of(model, optimizer)["history"] = [torch.randn(2), {"a": torch.randn(1)}]


def _lr_a_tensor(model, optimizer):
    optimizer.param_groups[0]["lr"] = torch.tensor(0.25)


def _extra_state_defined(model, optimizer):
    model.third.__class__ = type(
        "Extra", (nn.Linear,), {"get_extra_state": lambda self: {"n": 5}, "set_extra_state": lambda *_: None}
    )


def _hook_registered(model, optimizer):
    model.second.register_state_dict_post_hook(
        lambda module, state, prefix, _: state.update({prefix + "added": torch.ones(3)})
    )


def _state_dict_patched(model, optimizer):
    model.state_dict = types.MethodType(lambda self, *_, **__: {"all": torch.ones(3)}, model)


def _inner_state_dict_patched(model, optimizer):
    model.second._save_to_state_dict = lambda destination, prefix, _: destination.update(
        {prefix + "x": torch.ones(1)}
    )


def _optimizer_state_dict_patched(model, optimizer):
    optimizer.state_dict = types.MethodType(lambda self: {"state": {}, "param_groups": []}, optimizer)


def _optimizer_hook(model, optimizer):
    optimizer.register_state_dict_post_hook(lambda _, found: {**found, "more": 1})


def _parametrized(model, optimizer):
    torch.nn.utils.parametrizations.weight_norm(model.second)


def _version(model, optimizer):
    model.second._version = 9


MOVES = [value for name, value in sorted(globals().items()) if name.startswith("_") and callable(value)]
MOVES = [move for move in MOVES if getattr(move, "__module__", "") == __name__]


@pytest.mark.parametrize("move", MOVES, ids=lambda move: move.__name__.strip("_"))
def test_a_state_that_has_moved_is_planned_anew(tmp_path, move):
    model, optimizer = trained()
    model.register_buffer("waves", torch.randn(3, dtype=torch.complex64))
    kept = Kept(tmp_path, model=model, optimizer=optimizer)
    kept.check()
    move(model, optimizer)
    kept.check()


def test_there_is_a_test_for_each_move():
    assert len(MOVES) == len({move.__name__ for move in MOVES}) > 40


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
        + [torch.randn(2, dtype=torch.complex64).conj(), torch.ones(2, dtype=torch.bfloat16)]
    )
    kept = Kept(tmp_path, model=model, tensor=torch.randn(7), odd=torch.randn(4, 4).t()[1:])
    kept.check()
    with torch.no_grad():
        for parameter in model:
            parameter.mul_(2)
    kept.check()


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


def _mutations(rng, model, optimizer):
    safe = [
        _data, _buffer_replaced, _tied, _parameter_replaced, _module_replaced, _model_loaded, _optimizer_loaded_now,
        _state_replaced_by_its_equal, _state_key_added, _set, _to_half_and_back, _group_added, _lr_a_tensor,
        _nested_state, _buffer_in_place_of_none, _model_loaded_by_assigning, _modules_swapped, _version,
    ]  # fmt: skip
    for _ in range(rng.randrange(3)):
        rng.choice(safe)(model, optimizer)


def _optimizer_loaded_now(model, optimizer):
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))


@pytest.mark.parametrize("round_", range(8))
def test_any_series_of_moves(tmp_path, round_, seed):
    rng = random.Random(f"{seed} {round_}")
    model, optimizer = trained(rng.choice([torch.optim.Adam, torch.optim.SGD, torch.optim.RMSprop]))
    kept = Kept(tmp_path, model=model, optimizer=optimizer, note=[1])
    for _ in range(12):
        try:
            _mutations(rng, model, optimizer)
        except (KeyError, ValueError, RuntimeError):
            continue  # this move is not to be had after the others
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.mul_(rng.random())
        kept.check()
