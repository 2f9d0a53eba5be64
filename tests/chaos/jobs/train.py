"""A job whose final bytes say whether it resumed exactly: shuffled data, dropout, momentum, a schedule."""

import contextlib
import os
import time
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import orch

STEPS, BATCH = int(os.environ.get("STEPS", "600")), 4
HOLD = Path(os.environ.get("HOLD", "no such file"))
"""A pipe while it is there: no step is done until its other end has been closed."""
HOLD_FROM = int(os.environ.get("HOLD_FROM", "0"))
"""Steps before it are done whatever is there."""
PRODUCTS = int(os.environ.get("PRODUCTS", "4"))
"""Work of every step, about a millisecond each: so many products of WEIGHTY with itself, whose result nobody uses."""

torch.manual_seed(7)
torch.set_num_threads(1)
x = torch.randn(400, 8)
WEIGHTY = torch.ones(448, 448)
model = nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.1), nn.Linear(16, 1))
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=[2, 4], gamma=0.5)
loader = DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=BATCH, shuffle=True)

run = orch.training(
    restore=os.environ.get("RESTORE", "1") == "1", model=model, optimizer=optimizer, scheduler=scheduler
)
gap_max_s, before_s = 0.0, None
for _ in run.epochs(STEPS * BATCH // len(x)):
    for inputs, wanted in run.batches(loader):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(inputs), wanted)
        loss.backward()
        optimizer.step()
        for _ in range(PRODUCTS):
            torch.mm(WEIGHTY, WEIGHTY)
        if run.step_count >= HOLD_FROM:
            with contextlib.suppress(FileNotFoundError):
                HOLD.read_bytes()
        run.step(loss=loss)
        now_s = time.monotonic()
        gap_max_s = max(gap_max_s, now_s - before_s) if before_s is not None else 0.0
        before_s = now_s
    scheduler.step()

torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, "final.pt")
print(f"longest pause between two steps: {gap_max_s:.3f} s")
