"""Storage of one job as DESIGN section 6 has it, and the truth about it for the invariants."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from orch.model.generation import Generation


@dataclass
class Storage:
    parents: dict[Generation, tuple[Generation | None, int]] = field(default_factory=dict)
    """Generation → its parent and the step it restored (generations/G.json)."""
    manifests: set[tuple[Generation, int]] = field(default_factory=set)
    best_on_chain: int = 0
    """Highest step that was ever committed on the chain as it stood then."""

    @property
    def newest(self) -> Generation | None:
        return max(self.parents, default=None)

    def begin(self, generation: Generation, step: int) -> bool:
        """False: a newer generation exists, this one must not run."""
        newest = self.newest
        if newest is not None and newest >= generation:
            return False
        self.parents[generation] = (newest, step)
        return True

    def admits(self, generation: Generation, step: int) -> bool:
        """Whether (generation, step) lies on the chain of the newest generation, at or before each fork."""
        at, limit = self.newest, float("inf")
        while at is not None:
            if at == generation:
                return step <= limit
            parent, fork = self.parents[at]
            at, limit = parent, min(limit, fork)
        return False

    def commit(self, generation: Generation, step: int) -> None:
        self.manifests.add((generation, step))
        if self.admits(generation, step):
            self.best_on_chain = max(self.best_on_chain, step)

    def restore_points(self) -> list[tuple[Generation, int]]:
        return sorted(
            (m for m in self.manifests if self.admits(*m)), key=lambda m: (m[1], m[0]), reverse=True
        )
