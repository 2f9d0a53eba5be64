"""The Lightning example: killed within an epoch and after one, it ends with the bytes of an undisturbed run."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint

import orch.lightning
from orch_workers.training import lightning_fit, protocol, session
from support.files import restored
from support.integrations import as_job, by_hand, flat
from support.workers import Machine

pytestmark = pytest.mark.filterwarnings("ignore")  # what Lightning and its dependencies say of each other

STEPS_PER_EPOCH = 29


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch):
    made = Machine(Path(tempfile.mkdtemp(prefix="orch-")), monkeypatch)
    yield made
    made.close()


def test_killed_twice_it_ends_as_undisturbed(machine, tmp_path):
    one = as_job(machine, "lightning", 45, 2 * STEPS_PER_EPOCH + 1)
    assert [step for step, _ in restored(one)] == [44, 2 * STEPS_PER_EPOCH], (
        "within an epoch, and where one begins"
    )
    calm = by_hand("lightning", tmp_path / "calm")
    ends = [flat(torch.load(folder / "final.pt")) for folder in (machine.workdir, calm)]
    assert ends[0] == ends[1]
    assert "not exact" not in one.notes()


class Line(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(2, 1)

    def training_step(self, batch, index):
        return self.net(batch).square().mean()

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 0.1)


def fitted(folder: Path, max_steps: int) -> tuple[int, str | None]:
    """A fit whose ModelCheckpoint saves to orch; (where it began, what it began with)."""
    checkpoints = orch.lightning.CheckpointIO()
    trainer = pl.Trainer(
        max_steps=max_steps,
        accelerator="cpu",
        plugins=[checkpoints],
        callbacks=[ModelCheckpoint(folder, every_n_train_steps=2, save_top_k=1, monitor=None)],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    model = Line()
    began: list[int] = []
    model.on_train_start = lambda: began.append(trainer.global_step)
    trainer.fit(
        model, torch.utils.data.DataLoader(torch.ones(40, 2), batch_size=4), ckpt_path=checkpoints.latest
    )
    return began[0], checkpoints.latest


def test_what_a_model_checkpoint_saves_goes_to_orch(agents, monkeypatch, tmp_path):
    begun = []

    def begin(*given):
        begun.append(session.begin(*given))
        return begun[-1]

    monkeypatch.setattr(lightning_fit, "open_run", begin)
    agent = agents(rules={"first": False, "last": False})
    monkeypatch.setenv(protocol.ENV_SOCKET, agent.socket_path)
    try:
        assert fitted(tmp_path, 6) == (0, None)
        begun[-1].give_up()
        agent.wait_idle()
        assert [message["step"] for message in agent.of("saved")] == [2, 4, 6]
        assert fitted(tmp_path, 8) == (6, "orch://6")
        assert not list(tmp_path.glob("*.ckpt")), "no file of Lightning's own"
    finally:
        begun[-1].give_up()
