"""Two ranks with DDP on the CPU whose final bytes say whether they resumed exactly: each has its own part of the data,
its own dropout, and all of them one model.
"""

import contextlib
import os
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

import orch

STEPS, BATCH = int(os.environ.get("STEPS", "300")), 4
HOLD = Path(os.environ.get("HOLD", "no such file"))
"""A pipe while it is there: no step is done until its other end has been closed."""
PRODUCTS = int(os.environ.get("PRODUCTS", "4"))
"""Work of every step, about a millisecond each: so many products of WEIGHTY with itself, whose result nobody uses."""

dist.init_process_group("gloo")
torch.manual_seed(7)
torch.set_num_threads(1)
x = torch.randn(400, 8)
WEIGHTY = torch.ones(448, 448)
model = DistributedDataParallel(nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.1), nn.Linear(16, 1)))
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=[2, 4], gamma=0.5)
data = TensorDataset(x, x.sum(1, keepdim=True))
sampler = DistributedSampler(data, shuffle=True, seed=3)
loader = DataLoader(data, batch_size=BATCH, sampler=sampler)
torch.manual_seed(100 + dist.get_rank())

run = orch.training(model=model, optimizer=optimizer, scheduler=scheduler)
for epoch in run.epochs(STEPS // len(loader)):
    sampler.set_epoch(epoch)
    for inputs, wanted in run.batches(loader):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(inputs), wanted)
        loss.backward()
        optimizer.step()
        for _ in range(PRODUCTS):
            torch.mm(WEIGHTY, WEIGHTY)
        with contextlib.suppress(FileNotFoundError):
            HOLD.read_bytes()
        run.step(loss=loss)
    scheduler.step()

if dist.get_rank() == 0:
    torch.save({"model": model.module.state_dict(), "optimizer": optimizer.state_dict()}, "final.pt")
dist.destroy_process_group()
