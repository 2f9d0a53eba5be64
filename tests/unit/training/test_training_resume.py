"""A run that was killed ends with the bytes of one that was not."""

from __future__ import annotations

import signal

SCRIPT = """
import os, random, signal
import numpy as np
import torch
import orch
from torch.utils.data import DataLoader, Dataset

torch.manual_seed(1); np.random.seed(2); random.seed(3)
KILL_AT = int(os.environ.get("KILL_AT", "0"))


class Numbers(Dataset):
    def __len__(self):
        return 22

    def __getitem__(self, index):
        noise = torch.rand(3) + float(np.random.rand()) + random.random()
        return torch.full((3,), float(index)) / 22 + 0.1 * noise


nn = torch.nn
model = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 1))
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [1, 2], gamma=0.5)
data = DataLoader(Numbers(), batch_size=4, shuffle=True, num_workers=int(os.environ["WORKERS"]))
run = orch.training(
    model=model, optimizer=optimizer, scheduler=scheduler, data=data, history=[],
)
for epoch in run.epochs(3):
    for batch in run.batches(data):
        loss = (model(batch) ** 2).mean() + random.random() * 0.01 * model(batch).sum()
        optimizer.zero_grad(); loss.backward(); optimizer.step()
        run.values["history"].append((epoch, batch.sum().item()))
        run.step(loss=loss)
        if run.step_count == KILL_AT:
            os.kill(os.getpid(), signal.SIGKILL)
    scheduler.step()
parts = [t.numpy().tobytes().hex() for t in model.state_dict().values()]
parts += [repr(run.values["history"]), repr(scheduler.state_dict())]
parts += [repr(torch.rand(1)), repr(random.random()), repr(np.random.rand())]
parts += [t.numpy().tobytes().hex() for s in optimizer.state_dict()["state"].values() for t in s.values()]
print("\\n".join(parts))
"""


def test_a_killed_run_ends_with_the_same_bytes(agents):
    options = {"WORKERS": "2"}
    undisturbed = agents(rules={"steps": 4}).run(SCRIPT, **options)
    assert len(undisturbed.stdout.splitlines()) > 10

    agent = agents(rules={"steps": 4})
    for kill_at, restored in ((5, 0), (10, 4)):
        killed = agent.run(SCRIPT, check=False, KILL_AT=str(kill_at), **options)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        assert agent.of("restored")[-1]["step"] == restored
    final = agent.run(SCRIPT, **options)
    assert agent.of("restored")[-1]["step"] == 8
    assert final.stdout == undisturbed.stdout
    assert [note for note in agent.of("note") if "not exact" in note["message"]] == []


def test_with_restoring_disabled_it_fails(agents):
    """The test above would notice a run that starts over."""
    options = {"WORKERS": "0"}
    agent = agents(rules={"steps": 4})
    agent.run(SCRIPT, check=False, KILL_AT="10", **options)
    agent.restore = False
    agent.run(SCRIPT, **options)
    assert agent.of("restored")[-1]["step"] == 0
