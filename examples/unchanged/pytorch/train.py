"""A training script as it is found everywhere. It knows nothing of orch."""

# ruff: noqa: PTH113  As it is found everywhere.

import os

import torch
from sklearn.datasets import load_digits  # ships with scikit-learn (from the UCI repository, CC BY 4.0)
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

EPOCHS = 6
FILENAME = "checkpoint.pth.tar"

torch.manual_seed(0)
digits = load_digits()
dataset = TensorDataset(torch.tensor(digits.data / 16.0, dtype=torch.float32), torch.tensor(digits.target))
loader = DataLoader(dataset, batch_size=64)

model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
criterion = nn.CrossEntropyLoss()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

start_epoch = 0
if os.path.isfile(FILENAME):
    print(f"=> loading checkpoint '{FILENAME}'")
    checkpoint = torch.load(FILENAME)
    start_epoch = checkpoint["epoch"]
    model.load_state_dict(checkpoint["state_dict"])
    optimizer.load_state_dict(checkpoint["optimizer"])
    print(f"=> loaded checkpoint '{FILENAME}' (epoch {start_epoch})")
else:
    print(f"=> no checkpoint found at '{FILENAME}'")

for epoch in range(start_epoch, EPOCHS):
    running_loss = 0.0
    for inputs, labels in loader:
        optimizer.zero_grad()
        loss = criterion(model(inputs), labels)
        loss.backward()
        optimizer.step()
        running_loss += loss.item()
    print(f"[{epoch + 1}] loss: {running_loss / len(loader):.4f}")
    torch.save(
        {"epoch": epoch + 1, "state_dict": model.state_dict(), "optimizer": optimizer.state_dict()}, FILENAME
    )

print("Finished Training")
torch.save(model.state_dict(), FILENAME)
