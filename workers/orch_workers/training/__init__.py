"""The side of orch that lives inside the training process: Python 3.8+, standard library only at import."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .run import Run

__all__ = ["training"]


def training(
    *,
    skip: str = "replay",
    restore: bool = True,
    seed: int | None = None,
    strict: bool = False,
    local_folder: str | None = None,
    local_every_s: float = 600.0,
    **objects: Any,
) -> Run:
    """Takes everything that makes up the state of this training, and restores it if there is something to
    restore.

    objects: PyTorch modules, optimizers, schedulers, anything with state_dict and load_state_dict, tensors,
    random generators, TensorFlow trackables (and lists and dicts of them), and plain values; `data`, DataLoaders
    and tf.data Datasets are looked at but hold no state. Random states are always included. skip: how an
    interrupted epoch is resumed: ``replay`` reads and drops the batches that were consumed; ``index`` goes to the
    next one, with random states set per batch from (seed, epoch, batch), from the first run on. restore: False
    starts from nothing although there may be a checkpoint. strict: TensorFlow objects that have found nothing in
    the checkpoint by the end of the first step, or the reverse, end the run; else they are reported.
    local_folder, local_every_s: without orch, where checkpoints go (default: .orch beside the script) and how
    often.

    Raises MismatchError when the stored state does not fit the objects, UnsupportedStateError for an object
    that cannot be kept, RefusedError when this worker has a training process already.
    """
    from .session import Options, open_run

    options = Options(
        skip=skip,
        restore=restore,
        seed=seed,
        strict=strict,
        local_folder=local_folder,
        local_every_s=local_every_s,
    )
    return open_run(objects, options)
