"""The body under Ray Train's TorchTrainer, with a checkpoint reported every tenth step."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import ray
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

HERE = str(Path(__file__).parent)
PASSED_ON = ("EVENTS", "WIDTH")


def loop(config: dict[str, Any]) -> None:
    """Runs in Ray's worker, which has neither our folder nor our environment."""
    os.environ.update(config["env"])
    sys.path.insert(0, config["folder"])
    import tempfile

    from body import SAVE_EVERY_STEPS, build, stamp, train

    stamp("entered")
    import torch
    from ray.train import Checkpoint, get_checkpoint, report

    stamp("imported")
    model, batch = build()
    done = 0
    if (checkpoint := get_checkpoint()) is not None:
        with checkpoint.as_directory() as folder:
            stored = torch.load(f"{folder}/state.pt", weights_only=True)
        model.load_state_dict(stored["model"])
        done = stored["step"]
    stamp("loaded", step=done)

    def after_step(step: int) -> None:
        if step % SAVE_EVERY_STEPS == 0:
            with tempfile.TemporaryDirectory() as folder:
                torch.save({"model": model.state_dict(), "step": step}, f"{folder}/state.pt")
                report({"step": step}, checkpoint=Checkpoint.from_directory(folder))

    train(model, batch, done, after_step)


def main() -> None:
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="error",
        _temp_dir=os.environ["RAY_FOLDER"],
    )
    TorchTrainer(
        loop,
        train_loop_config={"env": {name: os.environ[name] for name in PASSED_ON}, "folder": HERE},
        scaling_config=ScalingConfig(num_workers=1),
        run_config=RunConfig(
            storage_path=os.environ["STORAGE"],
            failure_config=FailureConfig(max_failures=1000),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
        ),
    ).fit()


if __name__ == "__main__":
    main()
