"""A script with a mistake that nobody sees until a machine dies: the scheduler is not given to orch.training().

`orch drill job.yaml` finds it; with FORGET=0 the same script passes.
"""

import os

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import orch

torch.manual_seed(3)
torch.set_num_threads(1)
x = torch.randn(256, 8)
loader = DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=16, shuffle=True)
model = nn.Sequential(nn.Linear(8, 32), nn.Dropout(0.1), nn.Linear(32, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 100))  # warm-up

forgotten = {} if os.environ.get("FORGET", "1") == "1" else {"scheduler": scheduler}
run = orch.training(model=model, optimizer=optimizer, data=loader, **forgotten)
for _ in run.epochs(20):
    for inputs, wanted in run.batches(loader):
        loss = nn.functional.mse_loss(model(inputs), wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        run.step(loss=loss)
