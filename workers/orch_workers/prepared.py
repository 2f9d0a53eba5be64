"""What the keeper hands to a training process, and what it takes to storage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orch.model.generation import Generation
from orch_workers.checkpoint.staging import Snapshot


@dataclass(frozen=True)
class Prepared:
    """What the next training process will restore: a READY slot file."""

    path: str
    source: str
    generation: tuple[int, int]
    step: int
    index: int

    @classmethod
    def of(cls, snapshot: Snapshot, source: str) -> Prepared:
        """`source`: "memory" or "storage"."""
        return cls(snapshot.path, source, snapshot.generation, snapshot.step, snapshot.index)

    def told(self, skip: int) -> dict[str, Any]:
        """For the welcome of a training process (training/protocol.py)."""
        return {
            "path": self.path,
            "source": self.source,
            "generation": str(Generation(*self.generation)),
            "step": self.step,
            "skip": skip,
        }


@dataclass(frozen=True)
class Filled:
    """A slot that waits to be written to storage; held until it is."""

    snapshot: Snapshot
    info: Mapping[str, Any]

    @property
    def why_held(self) -> str:
        """A word of its own: what `poison` forgets on its way may have made room for another one."""
        return f"upload of step {self.snapshot.step} of {self.snapshot.generation}"
