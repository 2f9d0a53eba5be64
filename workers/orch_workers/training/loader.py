"""What `run.batches` needs to know of a loader: can it be replayed exactly, and from which random states."""

from __future__ import annotations

import collections
from typing import Any, Iterator, Sequence

from . import rng
from .tensors import torch_module
from .tf_data import DatasetLoader

_REPEATABLE = (list, tuple, range, dict, str, collections.deque)


def is_torch_loader(loader: Any) -> bool:
    torch = torch_module()
    data = getattr(getattr(torch, "utils", None), "data", None)
    return data is not None and isinstance(loader, data.DataLoader)


def keeps_own_state(loader: Any) -> bool:
    """Loaders that can tell where they are (torchdata's StatefulDataLoader) are asked instead of replayed."""
    return callable(getattr(loader, "state_dict", None)) and callable(
        getattr(loader, "load_state_dict", None)
    )


def why_inexact(loader: Any) -> list[str]:
    """Reasons why a replay cannot give the same batches, as sentences. Empty: it can."""
    if isinstance(loader, DatasetLoader):
        return loader.pipeline.why_inexact()
    if not is_torch_loader(loader) or keeps_own_state(loader):
        return []
    found = []
    if loader.num_workers > 0 and loader.persistent_workers:
        found.append(
            "the loader has persistent_workers=True, so the random states of its workers span epochs: "
            'use persistent_workers=False or orch.training(skip="index") to be exact'
        )
    if loader.num_workers > 0 and not getattr(loader, "in_order", True):
        found.append("the loader has in_order=False, so the order of its batches depends on timing")
    return found


def needs_own_stream(loader: Any) -> bool:
    """Whether the loader's code may draw from this process's global random states between two batches in a
    way that decides which data comes next. Training draws from the same states (dropout), and a replay does
    not repeat what training draws; so such a loader gets states of its own. The samplers that torch ships
    draw once per epoch, or from a generator of their own, and whatever else draws in this process
    (augmentation) decides no order.
    """
    if isinstance(loader, _REPEATABLE):
        return False
    if isinstance(loader, DatasetLoader):
        return loader.pipeline.calls_python
    if not is_torch_loader(loader):
        return True
    torch = torch_module()
    data = torch.utils.data
    if isinstance(loader.dataset, data.IterableDataset):
        return bool(loader.num_workers == 0)
    known = (
        data.SequentialSampler,
        data.RandomSampler,
        data.SubsetRandomSampler,
        data.WeightedRandomSampler,
        data.distributed.DistributedSampler,
    )
    batching = loader.batch_sampler
    if batching is not None:
        return type(batching) is not data.BatchSampler or type(batching.sampler) not in known
    return type(loader.sampler) not in known


class OwnStream:
    """Iterates with global random states that belong to the loader alone. They branch off the process's own
    states, by value, when the iteration starts.
    """

    def __init__(self, loader: Any, adapters: Sequence[Any]) -> None:
        self._adapters = adapters
        outside = rng.capture_host(adapters)
        rng.branch_host(adapters)
        try:
            self._iterator = iter(loader)
        finally:
            self._states = rng.capture_host(adapters)
            rng.restore_host(outside, adapters)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        outside = rng.capture_host(self._adapters)
        rng.restore_host(self._states, self._adapters)
        try:
            return next(self._iterator)
        finally:
            self._states = rng.capture_host(self._adapters)
            rng.restore_host(outside, self._adapters)


def open_iterator(loader: Any, adapters: Sequence[Any]) -> Iterator[Any]:
    return OwnStream(loader, adapters) if needs_own_stream(loader) else iter(loader)


def generator_states(loader: Any, adapters: Sequence[Any]) -> dict[str, Any]:
    """States of the random generators that the loader holds, by path; for a dataset, from where its pass starts."""
    if isinstance(loader, DatasetLoader):
        return loader.start_state()
    return {path: handler.capture() for path, handler in rng.generator_handlers(loader, adapters).items()}


def set_generator_states(loader: Any, stored: dict[str, Any], adapters: Sequence[Any]) -> list[str]:
    """Returns sentences about generators that are stored and not there any more."""
    if isinstance(loader, DatasetLoader):
        loader.set_start(stored)
        return []
    handlers = rng.generator_handlers(loader, adapters)
    for path, state in stored.items():
        if path in handlers:
            handlers[path].restore(state)
    return [
        f"the random generator at {path} was there when the checkpoint was made, and is not now"
        for path in stored
        if path not in handlers
    ]
