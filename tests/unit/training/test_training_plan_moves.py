"""Each way in which a state can move, alone and in any series: what is saved is what is there."""

from __future__ import annotations

import copy
import random
import types

import pytest
import torch
from plans import Kept, Net, trained
from torch import nn


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


def _group_key_added(model, optimizer):
    optimizer.param_groups[0]["initial_lr"] = 0.5


def _group_key_removed(model, optimizer):
    del optimizer.param_groups[0]["maximize"]


def _group_order(model, optimizer):
    optimizer.param_groups[0]["params"].reverse()


def entry_of(model, optimizer):
    if model.first.weight not in optimizer.state:
        raise KeyError("asking would make it")
    return optimizer.state[model.first.weight]


def _state_key_added(model, optimizer):
    entry_of(model, optimizer)["max_exp_avg_sq"] = torch.randn(4, 3)


def _state_key_added_at_the_end(model, optimizer):
    *_, last = optimizer.state.values()
    last["max_exp_avg_sq"] = torch.randn(4)


def _state_key_renamed(model, optimizer):
    *_, last = optimizer.state.values()
    last["other"] = last.pop(next(reversed(last)))


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
