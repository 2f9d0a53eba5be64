"""skip="index": batch n of epoch e is a function of (seed, e, n), so a resume goes to it without replaying.

The loader's own order is drawn from (seed, epoch), and before each batch is read the random states of the
process that reads it are set from (seed, epoch, batch): in this process or in a loader worker, in undisturbed
runs too.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Iterator, Sequence

from . import rng
from .errors import TrainingError
from .loader import is_torch_loader
from .snapshot import Adapters
from .tensors import torch_module

if TYPE_CHECKING:
    from .objects import GeneratorHandler


def derived_seed(*parts: Any) -> int:
    """63 bits that depend on every part."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


class _IndexedDataset:
    """Gives whole batches: item (n, indices) is the collated batch n. Sent to loader workers."""

    def __init__(self, loader: Any, seed: int, epoch: int) -> None:
        self._dataset = loader.dataset
        self._collate = loader.collate_fn
        self._batched = loader.batch_sampler is not None
        self._seed = seed
        self._epoch = epoch
        self._adapters: list[Any] = []
        self._generators: list[tuple[str, GeneratorHandler]] | None = None

    def __getattr__(self, name: str) -> Any:
        # a worker_init_fn looks at get_worker_info().dataset and finds the user's own attributes
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._dataset, name)

    def __getitem__(self, item: tuple[int, Any]) -> Any:
        number, indices = item
        if self._generators is None:  # in the process that reads: the handlers must not travel to it
            self._adapters = Adapters().active()
            self._generators = sorted(rng.generator_handlers(self._dataset, self._adapters).items())
        rng.seed_host(derived_seed(self._seed, self._epoch, number), self._adapters)
        for path, handler in self._generators:
            handler.reseed(derived_seed(self._seed, self._epoch, number, path))
        if not self._batched:
            return self._collate(self._dataset[indices])
        many = getattr(self._dataset, "__getitems__", None)
        return self._collate(
            many(indices) if many is not None else [self._dataset[index] for index in indices]
        )


def _as_it_is(batch: Any) -> Any:
    return batch


def indexed_batches(loader: Any, seed: int, epoch: int, skip: int) -> Iterator[Any]:
    """The batches of one epoch from number `skip` on. Raises TrainingError for loaders without an index."""
    torch = torch_module()
    if not is_torch_loader(loader) or isinstance(loader.dataset, torch.utils.data.IterableDataset):
        raise TrainingError(
            f'skip="index" needs a torch DataLoader over a map-style dataset, not {type(loader).__name__}: '
            'use run.batches(loader, skip="replay") for this one'
        )
    adapters = Adapters().active()
    order = _order(loader, seed, epoch, adapters)
    options = {
        name: getattr(loader, name)
        for name in ("num_workers", "pin_memory", "timeout", "worker_init_fn", "pin_memory_device")
        if hasattr(loader, name)
    }
    if loader.num_workers > 0:
        options["prefetch_factor"] = loader.prefetch_factor
        options["multiprocessing_context"] = loader.multiprocessing_context
    inner = torch.utils.data.DataLoader(
        _IndexedDataset(loader, seed, epoch),
        batch_size=None,
        sampler=list(enumerate(order))[skip:],
        collate_fn=_as_it_is,
        generator=torch.Generator(),  # for its base seed, instead of what training draws from
        **options,
    )
    outside = rng.capture_host(adapters)
    try:
        iterator = iter(inner)
    finally:
        rng.restore_host(outside, adapters)
    return _Apart(iterator, adapters) if loader.num_workers == 0 else iterator


class _Apart:
    """Reading a batch in this process reseeds it; what training draws from is put back afterwards."""

    def __init__(self, iterator: Iterator[Any], adapters: Sequence[Any]) -> None:
        self._iterator = iterator
        self._adapters = adapters

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        outside = rng.capture_host(self._adapters)
        try:
            return next(self._iterator)
        finally:
            rng.restore_host(outside, self._adapters)


def _order(loader: Any, seed: int, epoch: int, adapters: Sequence[Any]) -> list[Any]:
    """The indices of each batch, drawn from (seed, epoch) however the sampler draws them."""
    sampler = loader.batch_sampler if loader.batch_sampler is not None else loader.sampler
    outside = rng.capture_host(adapters)
    rng.seed_host(derived_seed(seed, epoch), adapters)
    for path, handler in sorted(rng.generator_handlers(sampler, adapters).items()):
        handler.reseed(derived_seed(seed, epoch, path))
    try:
        return list(sampler)
    finally:
        rng.restore_host(outside, adapters)
