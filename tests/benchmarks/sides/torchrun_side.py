"""The body as people write it for torchrun: it saves to a file and loads what is there."""

from __future__ import annotations

import os

from body import SAVE_EVERY_STEPS, build, stamp, train

stamp("entered")
import torch  # noqa: E402

stamp("imported")
model, batch = build()
path, done = os.environ["CHECKPOINT"], 0
if os.path.exists(path):  # noqa: PTH110 - imports count
    stored = torch.load(path, weights_only=True)
    model.load_state_dict(stored["model"])
    done = stored["step"]
stamp("loaded", step=done)


def after_step(step: int) -> None:
    if step % SAVE_EVERY_STEPS == 0:
        torch.save({"model": model.state_dict(), "step": step}, f"{path}.new")
        os.replace(f"{path}.new", path)  # noqa: PTH105


train(model, batch, done, after_step)
