"""Handwritten digits with Lightning: shuffled, with dropout and a scheduler, and exact after any kill."""

import pytorch_lightning as pl
import torch
from sklearn.datasets import load_digits  # ships with scikit-learn (UCI, CC BY 4.0)
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import orch.lightning

EPOCHS = 4


class Digits(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 10))

    def training_step(self, batch, index):
        images, labels = batch
        loss = nn.functional.cross_entropy(self.net(images), labels)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), 1e-2)
        return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)]


pl.seed_everything(1)
images, labels = load_digits(return_X_y=True)
data = TensorDataset(torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels))
loader = DataLoader(data, batch_size=64, shuffle=True)

model = Digits()
trainer = pl.Trainer(
    max_epochs=EPOCHS,
    accelerator="cpu",
    callbacks=[orch.lightning.Checkpoint()],
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)
trainer.fit(model, loader)
print(f"done after {trainer.global_step} steps, learning rate {trainer.optimizers[0].param_groups[0]['lr']}")
torch.save({"model": model.state_dict(), "optimizer": trainer.optimizers[0].state_dict()}, "final.pt")
