"""A small convolutional network on the 1,797 handwritten digits that ship with scikit-learn.

Runs under orch (`orch submit examples/digits/job.yaml`) and by hand (`python train.py`): the same script.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, Dataset

import orch

TEST_SHARE = 5  # every fifth digit is held out


class Digits(Dataset):
    """8x8 grey images; a training image is shifted by up to one pixel each time it is read."""

    def __init__(self, *, train: bool) -> None:
        data = load_digits()
        held_out = torch.arange(len(data.target)) % TEST_SHARE == 0
        chosen = ~held_out if train else held_out
        self.images = torch.tensor(data.images, dtype=torch.float32)[chosen].unsqueeze(1) / 16
        self.labels = torch.tensor(data.target)[chosen]
        self.train = train

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        image = self.images[index]
        if self.train:
            down, right = torch.randint(-1, 2, (2,)).tolist()
            image = torch.roll(image, (down, right), (1, 2))
        return image, self.labels[index]


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(32 * 4 * 4, 10),
    )


def accuracy(model: nn.Module, digits: Digits) -> float:
    model.eval()
    with torch.no_grad():
        right = (model(digits.images).argmax(1) == digits.labels).float().mean().item()
    model.train()
    return right


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--out", type=Path, default=Path())
    options = parser.parse_args()

    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=[16, 28], gamma=0.3)
    loader = DataLoader(Digits(train=True), batch_size=options.batch_size, shuffle=True)
    test = Digits(train=False)
    loss_of = nn.CrossEntropyLoss()

    run = orch.training(model=model, optimizer=optimizer, scheduler=scheduler)
    for epoch in run.epochs(options.epochs):
        for images, labels in run.batches(loader):
            optimizer.zero_grad()
            loss = loss_of(model(images), labels)
            loss.backward()
            optimizer.step()
            run.step(loss=loss)
        scheduler.step()
        print(f"epoch {epoch}: loss {loss.item():.4f}, test accuracy {accuracy(model, test):.4f}", flush=True)

    # Not the weights alone: whoever compares two runs sees the random state too.
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "random": torch.get_rng_state(),
    }
    torch.save(state, options.out / "final.pt")
    result = {"test_accuracy": accuracy(model, test), "epochs": options.epochs}
    (options.out / "result.json").write_text(json.dumps(result) + "\n")
    print(f"test accuracy {result['test_accuracy']:.4f}")


if __name__ == "__main__":
    main()
