"""Real FSDP2, DTensor and DDP on gloo: what some ranks have saved goes on with another number of them, and every sample
of the epoch is seen once.
"""

from __future__ import annotations

import json
import os
from collections import Counter

import pytest

from orch_policies.restart import Budgets
from support.gangs import Gang
from support.server import wait_for

LIMIT_S = 180.0
SAMPLES = 480
HELD_AT = 5
AT_ONCE = {"budgets": Budgets(backoff_initial_s=0.0).to_dict()}

SCRIPT = """
import json, os, sys
import torch, torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler
import orch

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
torch.manual_seed(world)  # what is not restored is seen to be another
model = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7) if DDP else nn.ReLU(), nn.Linear(7, 3))
objects = {}
if DDP:
    model = DistributedDataParallel(model)
else:
    mesh = init_device_mesh("cpu", (world,))
    for part in (model[0], model[2], model):
        fully_shard(part, mesh=mesh)
    objects["table"] = nn.Parameter(distribute_tensor(torch.randn(6, 5), mesh, [Shard(world % 2)]))
optimizer = torch.optim.AdamW([*model.parameters(), *objects.values()], lr=1e-2)
data = TensorDataset(torch.arange(SAMPLES).reshape(-1, 1))
sampler = DistributedSampler(data, seed=3)
loader = DataLoader(data, batch_size=2 if world == 2 else 4, sampler=sampler)
objects |= {"model": model, "optimizer": optimizer}

def whole():
    found = dict(model.state_dict())
    found |= {"table": objects["table"]} if "table" in objects else {}
    for number, entry in optimizer.state_dict()["state"].items():
        found |= {f"{number}.{key}": value for key, value in entry.items()}
    return {n: getattr(v, "full_tensor", lambda v=v: v)().detach().reshape(-1).tolist() for n, v in found.items()
            if "running" not in n}

def say(what, value):
    with open(f"{what}-{world}-{rank}", "a") as file:
        file.write(json.dumps(value) + "\\n")

run = orch.training(**objects)
say("states", [run.step_count, whole()])
for epoch in run.epochs(1):
    sampler.set_epoch(epoch)
    for (numbers,) in run.batches(loader):
        optimizer.zero_grad()
        loss = model(numbers.float().repeat(1, 5) / SAMPLES).pow(2).mean()
        loss = loss + (objects["table"].full_tensor().pow(2).mean() if "table" in objects else 0)
        loss.backward()
        optimizer.step()
        say("seen", [run.step_count + 1, numbers.reshape(-1).tolist()])
        say("states", [run.step_count + 1, whole()])
        if world == 2 and run.step_count == HELD_AT:
            open(f"gate-{rank}").read()
        run.step(loss=loss)
if not run.exact:
    say("inexact", run.inexact_reasons)
"""


def lines(machine, name):
    return [json.loads(line) for line in (machine.workdir / name).read_text().splitlines()]


@pytest.mark.parametrize("kind", ["FSDP2", "DDP"])
def test_what_two_ranks_saved_goes_on_with_three(machine, kind):
    script = f"DDP, SAMPLES, HELD_AT = {kind == 'DDP'}, {SAMPLES}, {HELD_AT}\n{SCRIPT}"
    for rank in (0, 1):
        os.mkfifo(machine.workdir / f"gate-{rank}")
    two = Gang(machine, policy=AT_ONCE).start(script)
    wait_for("they are held", lambda: all(m.step >= HELD_AT for m in two.ranks.values()), LIMIT_S)
    for member in two.ranks.values():
        member.worker.stop("stopped", 120.0)
    for rank in (0, 1):
        (machine.workdir / f"gate-{rank}").write_text("go on")
    assert two.wait_over() == ["stopped", "stopped"]
    _, step = machine.committed()[-1]
    assert step > HELD_AT

    three = Gang(machine, size=3, policy=AT_ONCE).start(script, attempt=2)
    assert three.wait_over() == ["succeeded"] * 3
    for rank in range(3):
        (at, restored), *_ = lines(machine, f"states-3-{rank}")
        assert at == step
        before = dict(lines(machine, f"states-2-{rank % 2}"))[step]
        assert restored == before, "bit for bit what the ranks before had together"
    seen = Counter()
    for world, rank in ((2, 0), (2, 1), (3, 0), (3, 1), (3, 2)):
        for at, numbers in lines(machine, f"seen-{world}-{rank}"):
            if world == 3 or at <= step:
                seen.update(numbers)
    assert set(seen) == set(range(SAMPLES))
    assert sum(seen.values()) - SAMPLES < 3, "as many as the sampler repeats so that all ranks have as many"
    (reasons,) = lines(machine, "inexact-3-2")
    assert "saved by 2 ranks and goes on with 3" in reasons[0]
    three.ranks[0].wait_note(f"step {step} was saved by 2 ranks and is restored on 3")
