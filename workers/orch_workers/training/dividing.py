"""A pass over samples that a DistributedSampler divides over the ranks, gone on with by another number of them.

The sampler shuffles all samples and gives every n-th to each of n ranks, so what n ranks have consumed after b batches
is the beginning of that order. The rest of it is divided over the ranks that go on: no sample of the pass is seen
twice, and none is left out. (Where the rest is no multiple of the ranks, a few are repeated or dropped, as the
sampler itself does at the end of each pass.)
"""

from __future__ import annotations

import copy
from typing import Any, Iterator

from .loader import is_torch_loader, keeps_own_state
from .tensors import torch_module


class Rest:
    """In the place of a sampler: these samples."""

    def __init__(self, indices: list[int]) -> None:
        self._indices = indices

    def __iter__(self) -> Iterator[int]:
        return iter(self._indices)

    def __len__(self) -> int:
        return len(self._indices)


class Division:
    """Of one iteration over one loader. `before`: so many samples of the pass other numbers of ranks have consumed, in
    `batches` batches.
    """

    def __init__(self, loader: Any, before: int = 0, batches: int = 0) -> None:
        self._batching = loader.batch_sampler
        self._sampler = self._batching.sampler
        self.ranks = max(1, self._sampler.total_size // max(1, self._sampler.num_samples))
        self.batch_size = int(self._batching.batch_size)
        self.before, self.batches = before, batches

    @staticmethod
    def of(loader: Any, stored: dict[str, Any] | None = None) -> Division | None:
        """`stored`: what `to_tree` gave, and `consumed`, the batches of the pass that were consumed then. None: nothing
        is known of how this loader's samples are divided.
        """
        if not _is_divided(loader):
            return None
        found = Division(loader)
        if stored is not None:
            found.before, found.batches = stored["before"], stored["batches"]
            if (stored["ranks"], stored["batch_size"]) != (found.ranks, found.batch_size):
                since = stored["consumed"] - found.batches
                found.before += since * stored["ranks"] * stored["batch_size"]
                found.batches = stored["consumed"]
        return found

    def to_tree(self) -> dict[str, int]:
        return {
            "ranks": self.ranks,
            "batch_size": self.batch_size,
            "before": self.before,
            "batches": self.batches,
        }

    def begin(self) -> None:
        """Until `end` the loader gives this rank its part of the rest."""
        if self.before:
            self._batching.sampler = Rest(self._own_part())

    def end(self) -> None:
        self._batching.sampler = self._sampler

    def _own_part(self) -> list[int]:
        rest = self._order()[self.before :]
        over = len(rest) % self.ranks
        if over and self._sampler.drop_last:
            rest = rest[: len(rest) - over]
        elif over:
            missing = self.ranks - over
            rest += (rest * -(-missing // len(rest)))[:missing]
        return rest[self._sampler.rank :: self.ranks]

    def _order(self) -> list[int]:
        """All samples of the pass, as the sampler would give them to a single rank."""
        own = self._sampler
        alone = copy.copy(own)
        torch_module().utils.data.distributed.DistributedSampler.__init__(
            alone, own.dataset, 1, 0, own.shuffle, own.seed, own.drop_last
        )
        alone.epoch = own.epoch
        return list(alone)


def _is_divided(loader: Any) -> bool:
    if not is_torch_loader(loader) or keeps_own_state(loader):
        return False
    data = torch_module().utils.data
    batching = loader.batch_sampler
    sampler = getattr(batching, "sampler", None)
    divided = data.distributed.DistributedSampler
    return (
        type(batching) is data.BatchSampler
        and isinstance(sampler, divided)
        and getattr(type(sampler), "__iter__", None) is divided.__iter__
    )
