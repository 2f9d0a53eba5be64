"""Every optimizer and scheduler that torch ships goes on from a checkpoint as if nothing had happened."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from harness import begin, saved
from torch import nn
from torch.optim import lr_scheduler, swa_utils

from orch_workers.training.errors import MismatchError

OPTIMIZERS = {
    "ASGD": {},
    "Adadelta": {},
    "Adafactor": {},
    "Adagrad": {"lr_decay": 0.1},
    "Adam": {"amsgrad": True},
    "AdamW": {"foreach": True},
    "Adamax": {},
    "LBFGS": {"history_size": 3, "max_iter": 3, "line_search_fn": "strong_wolfe"},
    "Muon": {"lr": 0.01},
    "NAdam": {"momentum_decay": 0.01},
    "RAdam": {},
    "RMSprop": {"momentum": 0.9, "centered": True},
    "Rprop": {},
    "SGD": {"momentum": 0.9, "nesterov": True},
    "SparseAdam": {},
}
ONE_GROUP = ("LBFGS",)
NO_BIAS = ("Muon",)


class Net(nn.Module):
    """Two layers that share one weight, and (for sparse gradients) an embedding."""

    def __init__(self, sparse: bool, bias: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 4, sparse=sparse)
        self.first = nn.Linear(4, 4, bias=bias and not sparse)
        self.second = nn.Linear(4, 4, bias=bias and not sparse)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(torch.tanh(self.first(self.embedding(x))))


def make(name):
    """(model, optimizer, an unnamed parameter): several groups where the optimizer has groups."""
    torch.manual_seed(5)
    sparse = name == "SparseAdam"
    model = Net(sparse, bias=name not in NO_BIAS)
    unnamed = nn.Parameter(torch.randn(3, 3))
    kind = getattr(torch.optim, name)
    if sparse:
        return model, kind([{"params": [model.embedding.weight], "lr": 0.02}]), unnamed
    rest = [parameter for parameter in model.parameters() if parameter is not model.embedding.weight]
    groups = [{"params": [*rest, unnamed]}, {"params": [model.embedding.weight], "lr": 0.02}]
    if name in ONE_GROUP:
        groups = [*rest, unnamed]
    return model, kind(groups, **OPTIMIZERS[name]), unnamed


def train(model, optimizer, unnamed, steps):
    for number in range(steps):

        def closure(number=number):
            optimizer.zero_grad()
            loss = (model(torch.tensor([number % 5, 2])) ** 2).sum() + (unnamed**2).sum()
            loss.backward()
            return loss

        if type(optimizer).__name__ == "LBFGS":
            optimizer.step(closure)
        else:
            closure()
            optimizer.step()


def tensors_in(value):
    if isinstance(value, torch.Tensor):
        return [value.detach().numpy().tobytes()]
    if isinstance(value, dict):
        return [part for item in value.values() for part in tensors_in(item)]
    if isinstance(value, (list, tuple)):
        return [part for item in value for part in tensors_in(item)]
    return [repr(value)]


def everything(model, optimizer, unnamed):
    return [tensors_in(model.state_dict()), tensors_in(optimizer.state_dict()), tensors_in(unnamed)]


def test_all_optimizers_are_tried():
    shipped = {
        name
        for name, kind in vars(torch.optim).items()
        if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)
    }
    assert shipped - {"Optimizer"} == set(OPTIMIZERS)


@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_an_optimizer_goes_on_as_if_nothing_had_happened(agents, monkeypatch, name, steps):
    agent = agents()
    first = make(name)
    train(*first, steps)
    saved(begin(agent, monkeypatch, model=first[0], optimizer=first[1], loose=first[2]))

    second = make(name)
    train(*second, 1)  # whatever it did before, the checkpoint counts
    begin(agent, monkeypatch, model=second[0], optimizer=second[1], loose=second[2]).give_up()
    assert everything(*second) == everything(*first)
    train(*first, 2)
    train(*second, 2)
    assert everything(*second) == everything(*first)


def test_state_is_matched_by_name_and_not_by_number(agents, monkeypatch):
    agent = agents()
    model = nn.Linear(2, 2)
    optimizer = torch.optim.Adam([model.weight, model.bias])
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    saved(begin(agent, monkeypatch, model=model, optimizer=optimizer))

    other = nn.Linear(2, 2)
    swapped = torch.optim.Adam([other.bias, other.weight])
    begin(agent, monkeypatch, model=other, optimizer=swapped).give_up()
    assert swapped.state[other.weight]["exp_avg"].equal(optimizer.state[model.weight]["exp_avg"])
    assert swapped.state[other.bias]["exp_avg"].equal(optimizer.state[model.bias]["exp_avg"])


def test_two_optimizers_over_two_models(agents, monkeypatch):
    agent = agents()
    makers = [make("Adam"), make("SGD")]
    for one in makers:
        train(*one, 2)
    objects = {"a": makers[0][0], "b": makers[1][0], "opt_a": makers[0][1], "opt_b": makers[1][1]}
    saved(begin(agent, monkeypatch, **objects))
    again = [make("Adam"), make("SGD")]
    objects = {"a": again[0][0], "b": again[1][0], "opt_a": again[0][1], "opt_b": again[1][1]}
    begin(agent, monkeypatch, **objects).give_up()
    for old, new in zip(makers, again, strict=True):
        assert everything(*new)[:2] == everything(*old)[:2]


def test_state_keeps_its_own_dtype(agents, monkeypatch):
    """torch casts state to its parameter's dtype when it loads: with bfloat16 parameters that loses bits."""
    agent = agents()
    parameter = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    optimizer = torch.optim.SGD([parameter], momentum=0.9)
    optimizer.state[parameter]["momentum_buffer"] = torch.rand(3, dtype=torch.float32)
    saved(begin(agent, monkeypatch, w=parameter, optimizer=optimizer))

    other = nn.Parameter(torch.zeros(3, dtype=torch.bfloat16))
    again = torch.optim.SGD([other], momentum=0.9)
    begin(agent, monkeypatch, w=other, optimizer=again).give_up()
    assert other.equal(parameter)
    assert again.state[other]["momentum_buffer"].dtype == torch.float32
    assert again.state[other]["momentum_buffer"].equal(optimizer.state[parameter]["momentum_buffer"])


def test_a_tensor_as_learning_rate(agents, monkeypatch):
    agent = agents()
    made = []
    for rate in (0.5, 0.1):
        model = nn.Linear(2, 2)
        optimizer = torch.optim.Adam(model.parameters(), lr=torch.tensor(rate))
        made.append((model, optimizer, lr_scheduler.ExponentialLR(optimizer, 0.5)))
    saved(begin(agent, monkeypatch, model=made[0][0], optimizer=made[0][1], scheduler=made[0][2]))
    begin(agent, monkeypatch, model=made[1][0], optimizer=made[1][1], scheduler=made[1][2]).give_up()
    assert made[1][1].param_groups[0]["lr"].item() == 0.5
    assert made[1][2].base_lrs == made[0][2].base_lrs


def test_other_parameters_in_a_group_are_named(agents, monkeypatch):
    agent = agents()
    model = nn.Linear(2, 2)
    saved(begin(agent, monkeypatch, model=model, optimizer=torch.optim.SGD(model.parameters())))
    with pytest.raises(MismatchError, match=r"group 0 of optimizer .*only in the checkpoint: model\.bias"):
        begin(agent, monkeypatch, model=model, optimizer=torch.optim.SGD([model.weight]))


class Decay:
    """A callable with state, as LambdaLR keeps it."""

    def __init__(self, factor):
        self.factor = factor
        self.calls = 0

    def __call__(self, epoch):
        self.calls += 1
        return self.factor**epoch


def warm_then_decay(optimizer):
    warm = lr_scheduler.LinearLR(optimizer, total_iters=2)
    return lr_scheduler.SequentialLR(optimizer, [warm, lr_scheduler.ExponentialLR(optimizer, 0.9)], [2])


def chained(optimizer):
    first = lr_scheduler.ConstantLR(optimizer, total_iters=3)
    return lr_scheduler.ChainedScheduler([first, lr_scheduler.ExponentialLR(optimizer, 0.9)], optimizer)


SCHEDULERS = {
    "ChainedScheduler": chained,
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, total_iters=3),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 5),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 2, 2),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, step_size_up=2),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, [Decay(0.9), Decay(0.8)]),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, total_iters=4),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [2, 4, 4]),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, Decay(0.99)),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, max_lr=[0.1, 0.2], total_steps=20),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, total_iters=4),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=1),
    "SequentialLR": warm_then_decay,
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2),
    "SWALR": lambda o: swa_utils.SWALR(o, 0.05),
}


def advance(optimizer, scheduler, steps):
    rates = []
    for number in range(steps):
        optimizer.step()
        if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau):
            scheduler.step(1.0 + number)
        else:
            with warnings.catch_warnings():  # SequentialLR steps its schedulers with an epoch
                warnings.simplefilter("ignore", UserWarning)
                scheduler.step()
        rates.append([repr(group["lr"]) for group in optimizer.param_groups])
        rates.append([repr(group.get("momentum")) for group in optimizer.param_groups])
    return rates


def test_all_schedulers_are_tried():
    shipped = {
        name
        for name, kind in vars(lr_scheduler).items()
        if isinstance(kind, type) and issubclass(kind, lr_scheduler.LRScheduler) and not name.startswith("_")
    }
    assert shipped - {"LRScheduler"} == set(SCHEDULERS) - {"SWALR"}


@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize("name", sorted(SCHEDULERS))
def test_a_scheduler_goes_on_as_if_nothing_had_happened(agents, monkeypatch, name, steps):
    agent = agents()

    def make_all():
        model = nn.Linear(2, 2)
        groups = [{"params": [model.weight]}, {"params": [model.bias], "lr": 0.3}]
        optimizer = torch.optim.SGD(groups, lr=0.2, momentum=0.9)
        return model, optimizer, SCHEDULERS[name](optimizer)

    model, optimizer, scheduler = make_all()
    advance(optimizer, scheduler, steps)
    before = copy.deepcopy(scheduler.state_dict())
    saved(begin(agent, monkeypatch, model=model, optimizer=optimizer, scheduler=scheduler))

    other_model, other, again = make_all()
    begin(agent, monkeypatch, model=other_model, optimizer=other, scheduler=again).give_up()
    assert again.state_dict() == before
    assert repr(again.state_dict()) == repr(before)  # types too: Counter, int keys
    assert advance(other, again, 5) == advance(optimizer, scheduler, 5)
