"""Hugging Face's Trainer under orch: `orch.huggingface.Checkpoint`.

The state is taken from memory after a step. To go on from it, it is written as a checkpoint folder of the Trainer's own
into a temporary place, and the Trainer resumes from that: it alone knows where its data was.
"""

# ruff: noqa: SLF001 - the Trainer's own format of random states is written by a method of that kind

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import tempfile
from typing import Any

from .objects import StateHandler
from .session import Options, open_run
from .tensors import torch_module

ARGUMENT = "trainer"
LOCAL_EVERY_S = 600.0
"""How often a checkpoint is made by hand, without orch."""


class TrainerHandler(StateHandler):
    kind = "transformers.Trainer"
    order = 0

    def __init__(self, keeper: Keeper) -> None:
        super().__init__(ARGUMENT, keeper)

    def capture(self) -> Any:
        return self.target.capture()

    def restore(self, stored: Any) -> None:
        self.target.write(stored)


class Keeper:
    """The state of one Trainer."""

    def __init__(self, trainer: Any, objects: dict[str, Any]) -> None:
        if ARGUMENT in objects:
            raise TypeError(f"orch.huggingface: {ARGUMENT} is what is kept anyway: leave it out")
        self._trainer = trainer
        self.folder: str | None = None
        options = Options(
            skip="replay", restore=True, seed=None, local_folder=None, local_every_s=LOCAL_EVERY_S
        )
        self.run = open_run({**objects, ARGUMENT: TrainerHandler(self)}, options)
        if self.folder is not None:
            # In the format of its own, with what they are now: they have just been restored.
            trainer._save_rng_state(self.folder)

    def capture(self) -> dict[str, Any]:
        trainer = self._trainer
        state = {
            name: value
            for name, value in dataclasses.asdict(trainer.state).items()
            if name != "stateful_callbacks"
        }
        return {
            "model": trainer.accelerator.unwrap_model(trainer.model).state_dict(),
            "optimizer": trainer.optimizer.state_dict(),
            "scheduler": trainer.lr_scheduler.state_dict(),
            # As the Trainer writes it: floats of NumPy and the like are plain after that.
            "state": json.dumps(state, default=float),
        }

    def write(self, stored: dict[str, Any]) -> None:
        """A folder that `train(resume_from_checkpoint=…)` takes."""
        torch = torch_module()
        folder = tempfile.mkdtemp(prefix="checkpoint-")
        self._trainer.model.save_pretrained(folder, state_dict=dict(stored["model"]))
        torch.save(stored["optimizer"], os.path.join(folder, "optimizer.pt"))
        torch.save(stored["scheduler"], os.path.join(folder, "scheduler.pt"))
        with open(os.path.join(folder, "trainer_state.json"), "w", encoding="utf-8") as file:
            file.write(stored["state"])
        self.folder = folder

    def forget_folder(self) -> None:
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder = None

    def step(self, global_step: int, epoch: float | None, logs: list[dict[str, Any]]) -> None:
        """The Trainer has done its step `global_step`."""
        self.run.step_count = global_step - 1
        self.run.set_epoch(int(epoch or 0))
        newest = logs[-1] if logs else {}
        self.run.step(**{name: value for name, value in newest.items() if isinstance(value, (int, float))})


def callback_class(base: Any) -> Any:
    """`orch.huggingface.Checkpoint`, a callback of the user's own transformers."""

    class Checkpoint(base):  # type: ignore[misc]
        """Keeps a Trainer alive: `kept = Checkpoint(trainer)`, `trainer.train(resume_from_checkpoint=kept.folder)`.

        objects: what else is part of the state, as for orch.training().
        """

        def __init__(self, trainer: Any, **objects: Any) -> None:
            super().__init__()
            self._keeper = Keeper(trainer, objects)
            trainer.add_callback(self)

        @property
        def folder(self) -> str | None:
            """What to resume from; None at the first start. It is gone when the training is over."""
            return self._keeper.folder

        @property
        def run(self) -> Any:
            """The Run (`orch.training`)."""
            return self._keeper.run

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self._keeper.step(state.global_step, state.epoch, state.log_history)

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self._keeper.run.training_is_over()
            self._keeper.forget_folder()

    return Checkpoint
