"""Restoring in place: from the slot into the memory that is there, and only where copying is all there is to do."""

from __future__ import annotations

import numpy as np
import torch
from harness import begin, saved
from plans import raw
from torch import nn

from orch_workers.training import pytorch
from orch_workers.training.loading import loads_as_torch_does


def net(seed):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Conv2d(2, 2, 3), nn.LayerNorm(4))
    model[2].to(memory_format=torch.channels_last)
    model.register_buffer("phase", torch.randn(3, dtype=torch.complex64))
    model.register_buffer("big", torch.randn(1 << 19))
    return model


def test_a_module_keeps_its_memory_and_gets_the_values(agents, monkeypatch):
    agent = agents()
    first, second = net(1), net(2)
    saved(begin(agent, monkeypatch, model=first))
    addresses = [value.data_ptr() for value in second.state_dict().values()]
    versions = [value._version for value in second.state_dict().values()]
    kept = second.state_dict()
    with monkeypatch.context() as patch:
        patch.setattr(nn.Module, "load_state_dict", None)  # its copy would be the second
        patch.setattr(pytorch, "loads_as_torch_does", lambda *_: True)
        begin(agent, monkeypatch, model=second).give_up()
    assert [value.data_ptr() for value in second.state_dict().values()] == addresses
    for (name, value), stored, before in zip(
        kept.items(), first.state_dict().values(), versions, strict=True
    ):
        assert torch.equal(raw(value), raw(stored)), name
        assert value._version > before, "as after an operation of torch that works in place"


def test_nothing_that_was_restored_is_the_slots_own_memory(agents, monkeypatch):
    class Own(nn.Linear):
        def _load_from_state_dict(self, state, prefix, *rest):
            self.seen = state[prefix + "weight"]
            super()._load_from_state_dict(state, prefix, *rest)

    agent = agents()
    model, average = Own(2, 2), np.ones(3)
    optimizer = torch.optim.SGD(model.parameters(), momentum=0.9)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    saved(begin(agent, monkeypatch, model=model, optimizer=optimizer, average=average))
    other = Own(2, 2)
    optimizer = torch.optim.SGD(other.parameters(), momentum=0.9)
    array = np.zeros(3)
    begin(agent, monkeypatch, model=other, optimizer=optimizer, average=array).give_up()
    expected = [
        value.clone()
        for value in (other.weight, other.seen, optimizer.state[other.weight]["momentum_buffer"])
    ]
    agent.snapshots[1].write_bytes(bytes(agent.snapshots[1].stat().st_size))  # as the next save would
    now = [other.weight, other.seen, optimizer.state[other.weight]["momentum_buffer"]]
    assert all(one.equal(two) for one, two in zip(now, expected, strict=True))
    assert other.seen.equal(model.weight)
    assert array.tolist() == [1, 1, 1]


def test_who_loads_in_a_way_of_its_own_is_asked():
    class Own(nn.Linear):
        def _load_from_state_dict(self, *arguments):
            super()._load_from_state_dict(*arguments)

    class Extra(nn.Linear):
        def set_extra_state(self, state): ...

    hooked, patched, late = nn.Linear(1, 1), nn.Linear(1, 1), nn.Linear(1, 1)
    hooked.register_load_state_dict_post_hook(lambda *_: None)
    patched.load_state_dict = lambda _: None
    late.register_load_state_dict_pre_hook(lambda *_: None)
    for odd in (Own(1, 1), Extra(1, 1), hooked, patched, late, nn.LazyLinear(2)):
        assert not loads_as_torch_does(torch, nn.Sequential(nn.Linear(1, 1), odd))
    assert loads_as_torch_does(torch, net(1))
    assert loads_as_torch_does(torch, nn.InstanceNorm2d(2, track_running_stats=True))
