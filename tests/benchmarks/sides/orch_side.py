"""The body under orch: `run.step` saves, by the rules of the job file."""

from __future__ import annotations

from body import build, stamp, train

stamp("entered")
import torch  # noqa: E402, F401 - the same imports in the same phase as the others

import orch  # noqa: E402

stamp("imported")
model, batch = build()
run = orch.training(model=model)
stamp("loaded", step=run.step_count)
train(model, batch, run.step_count, lambda _: run.step())
