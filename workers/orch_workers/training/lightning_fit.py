"""PyTorch Lightning under orch: `orch.lightning.Checkpoint` and `orch.lightning.CheckpointIO`.

What is kept is what Lightning itself keeps (its checkpoint dictionary: model, optimizers, schedulers, loops,
callbacks), and where the data is: how the pass over it began, and how many batches of it were used.
"""

# ruff: noqa: SLF001 - Lightning has no public way to what a fit is made of

from __future__ import annotations

from typing import Any, Iterator

from . import rng
from .errors import TrainingError
from .objects import StateHandler
from .session import Options, open_run
from .snapshot import Adapters

ARGUMENT = "trainer"
SCHEME = "orch://"
"""Paths of checkpoints that orch holds."""
LOCAL_EVERY_S = 600.0
"""How often a checkpoint is made by hand, without orch."""


def plain(value: Any) -> Any:
    """As the typed tree takes it: Lightning has dictionaries of its own kinds (hyperparameters)."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    if type(value) is tuple:
        return tuple(plain(item) for item in value)
    return value


def usable(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Without what is no state: the class of the hyperparameters."""
    return {key: plain(value) for key, value in checkpoint.items() if key != "hparams_type"}


def begin_anew(progress: Any) -> None:
    """As Lightning itself does when the epoch's first batch comes: until then it counts the last epoch's batches."""
    if not isinstance(progress, dict):
        return
    for key, value in progress.items():
        if key == "current":
            progress[key] = dict.fromkeys(value, 0)
        elif key == "is_last_batch":
            progress[key] = False
        else:
            begin_anew(value)


class Loader:
    """A loader of Lightning's, whose passes can be begun again as they were."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader
        self._adapters = Adapters()
        self.random: Any = None
        """The random states with which the newest pass was opened."""

    def __iter__(self) -> Iterator[Any]:
        self.random = rng.capture(self._adapters.active())
        opened: Iterator[Any] = iter(self._loader)
        return opened

    def __len__(self) -> int:
        return len(self._loader)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)


class Held(StateHandler):
    """What `source.capture()` gives; what is restored waits in `source.stored` until the trainer wants it."""

    kind = "lightning"
    order = 0

    def __init__(self, source: Any) -> None:
        super().__init__(ARGUMENT, source)

    def capture(self) -> Any:
        return self.target.capture()

    def restore(self, stored: Any) -> None:
        self.target.stored = stored


def opened(source: Any, objects: dict[str, Any]) -> Any:
    """The Run whose state is that of `source`."""
    if ARGUMENT in objects:
        raise TypeError(f"orch.lightning: {ARGUMENT} is what is kept anyway: leave it out")
    options = Options(skip="replay", restore=True, seed=None, local_folder=None, local_every_s=LOCAL_EVERY_S)
    return open_run({**objects, ARGUMENT: Held(source)}, options)


class Fit:
    """One trainer.fit."""

    def __init__(self, objects: dict[str, Any]) -> None:
        self._objects = objects
        self._adapters = Adapters()
        self._trainer: Any = None
        self._random_now: Any = None
        self._counted = 0
        self._used = 0
        """Batches of this epoch whose step is counted."""
        self._waiting: dict[str, Any] | None = None
        """The metrics of the last step of an epoch, until all of that epoch is done."""
        self.run: Any = None
        self.stored: dict[str, Any] | None = None

    def capture(self) -> dict[str, Any]:
        loaders = self._loaders()
        checkpoint = usable(self._trainer._checkpoint_connector.dump_checkpoint(weights_only=False))
        if not self._used:
            for name, state in checkpoint["loops"]["fit_loop"].items():
                if name.startswith("epoch_loop."):
                    begin_anew(state)
        return {
            "checkpoint": checkpoint,
            "used": self._used,
            "random": loaders[0].random if self._used and loaders else None,
        }

    def begins(self, trainer: Any) -> None:
        """Before Lightning restores: what is stored takes the place of what it was told to load."""
        if self.run is not None:
            raise TrainingError("orch.lightning.Checkpoint() keeps one trainer.fit in a script")
        self._trainer = trainer
        self.run = opened(self, self._objects)
        self._random_now = rng.capture(self._adapters.active())
        if self.stored is not None:
            connector = trainer._checkpoint_connector
            connector._loaded_checkpoint = self.stored["checkpoint"]
            connector.resume_start = lambda *_, **__: None

    def train_begins(self) -> None:
        """Lightning has restored, and opened the data."""
        trainer, stored = self._trainer, self.stored
        self._counted = trainer.global_step
        combined = trainer.fit_loop._combined_loader
        combined.flattened = [Loader(loader) for loader in combined.flattened]
        adapters = self._adapters.active()
        if stored is None:
            self._open_data()
            return
        self.stored = None
        if stored["random"] is not None:
            rng.restore(stored["random"], adapters)
        else:
            rng.restore(self._random_now, adapters)
        fetcher = self._open_data()
        for _ in range(stored["used"]):
            next(fetcher.iterator)
        self._used = stored["used"]
        if stored["random"] is not None:
            rng.restore(self._random_now, adapters)

    def _open_data(self) -> Any:
        fetcher = self._trainer.fit_loop._data_fetcher
        iter(fetcher)
        return fetcher

    def _loaders(self) -> list[Loader]:
        combined = self._trainer.fit_loop._combined_loader
        flat = combined.flattened if combined is not None else []
        return [loader for loader in flat if isinstance(loader, Loader)]

    def batch_ended(self, index: int) -> None:
        trainer = self._trainer
        if trainer.global_step == self._counted:
            return  # gradients that are not applied yet are nobody's state
        self._counted, self._used = trainer.global_step, index + 1
        metrics = _numbers(trainer.callback_metrics)
        if trainer.is_last_batch:
            self._waiting = metrics
        else:
            self.run.step(**metrics)

    def epoch_begins(self) -> None:
        """The epoch before is over, its schedulers and its validation too."""
        if self._waiting is not None:
            metrics, self._waiting, self._used = self._waiting, None, 0
            self.run.set_epoch(self._trainer.current_epoch)
            self.run.step(**metrics)
        elif self._trainer.fit_loop.epoch_loop.batch_progress.current.ready == 0:
            self._used = 0

    def train_ends(self) -> None:
        self.epoch_begins()
        self.run.training_is_over()


def _numbers(metrics: Any) -> dict[str, Any]:
    """Names that can be arguments stay; "/" and its like are what loggers have."""
    return {str(name): value for name, value in metrics.items()}


def callback_class(base: Any) -> Any:
    """`orch.lightning.Checkpoint`, a callback of the user's own Lightning."""

    class Checkpoint(base):  # type: ignore[misc]
        """Keeps a trainer.fit alive: `Trainer(callbacks=[orch.lightning.Checkpoint()])`.

        objects: what else is part of the state, as for orch.training().
        """

        def __init__(self, **objects: Any) -> None:
            super().__init__()
            self._fit = Fit(objects)

        @property
        def run(self) -> Any:
            """The Run (`orch.training`); None before the fit has begun."""
            return self._fit.run

        def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
            if stage == "fit":
                self._fit.begins(trainer)

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            self._fit.train_begins()

        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            self._fit.epoch_begins()

        def on_train_batch_end(
            self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
        ) -> None:
            self._fit.batch_ended(batch_idx)

        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            self._fit.train_ends()

    return Checkpoint


class Saves:
    """What a CheckpointIO has been given last."""

    def __init__(self) -> None:
        self._newest: dict[str, Any] = {}
        self.stored: dict[str, Any] | None = None
        self.run: Any = None

    def capture(self) -> dict[str, Any]:
        return self._newest

    def open(self) -> None:
        if self.run is None:
            self.run = opened(self, {})

    def latest(self) -> str | None:
        self.open()
        return None if self.stored is None else f"{SCHEME}{self.run.restored_step}"

    def save(self, checkpoint: dict[str, Any]) -> None:
        self.open()
        self._newest = usable(checkpoint)
        self.run.save_at(int(checkpoint["global_step"]))

    def load(self, path: str) -> dict[str, Any]:
        self.open()
        if self.stored is None or path != f"{SCHEME}{self.run.restored_step}":
            raise TrainingError(f"{path} is not what orch has restored; fit(ckpt_path=checkpoints.latest) is")
        return self.stored


def io_class(base: Any) -> Any:
    """`orch.lightning.CheckpointIO`, a plugin of the user's own Lightning; `base` is its TorchCheckpointIO."""

    class CheckpointIO(base):  # type: ignore[misc]
        """Takes what Lightning's own ModelCheckpoint saves: into memory, and from there to storage, instead of files.

        `Trainer(plugins=[checkpoints := CheckpointIO()])`, then `fit(…, ckpt_path=checkpoints.latest)`.
        """

        def __init__(self) -> None:
            super().__init__()
            self._saves = Saves()

        @property
        def latest(self) -> str | None:
            """For `ckpt_path`; None: there is nothing yet."""
            return self._saves.latest()

        def save_checkpoint(self, checkpoint: Any, path: Any, storage_options: Any = None) -> None:
            self._saves.save(checkpoint)

        def load_checkpoint(self, path: Any, *given: Any, **options: Any) -> Any:
            if not str(path).startswith(SCHEME):
                return super().load_checkpoint(path, *given, **options)
            return self._saves.load(str(path))

        def remove_checkpoint(self, path: Any) -> None:
            """What is kept, and for how long, is the job's `checkpoint.keep`."""

    return CheckpointIO
