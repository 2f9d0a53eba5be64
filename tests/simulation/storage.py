"""Storage of one job as DESIGN section 6 has it, and the truth about it for the invariants."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from orch.model.generation import Generation
from orch_workers.checkpoint.chain import Chain

if TYPE_CHECKING:
    from orch.model.states import Branch


@dataclass
class Storage:
    parents: dict[Generation, tuple[Generation | None, int]] = field(default_factory=dict)
    """Generation → its parent and the step it restored (generations/G.json)."""
    manifests: set[tuple[Generation, int]] = field(default_factory=set)
    best_on_chain: int = 0
    """Highest step that was ever committed on the chain as it stood then, less what was damaged or poisoned since."""
    chain: Chain | None = None
    """Of the newest generation, as the workers keep it: what they restore is chosen with it."""
    chains: dict[Generation, Chain] = field(default_factory=dict)
    """Of every generation, as it wrote it down."""
    quarantined: set[tuple[Generation, int]] = field(default_factory=set)
    away: bool = False

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

    def whole(self) -> set[tuple[Generation, int]]:
        """What was committed and reads, on the chain or off it."""
        return self.manifests - self.quarantined

    def branch(self, branch: Branch) -> None:
        """Written down before anything of the attempt starts; what was saved past the fork is left behind."""
        generation = Generation(branch.attempt, 0)
        newest = self.newest
        if newest is not None and newest >= generation:
            return
        self.parents[generation] = (branch.generation, branch.step)
        self.chain = self.chains[branch.generation].fork(generation, branch.generation, branch.step)
        self.chains[generation] = self.chain
        self._look_again(branch.step)

    def forked(self, generation: Generation, point: tuple[Generation, int] | None) -> None:
        """The workers' own chain, after `generation` has restored `point`."""
        if self.chain is None or point is None:
            self.chain = Chain.root(generation)
        else:
            self.chain = self.chain.fork(generation, *point)
        self.chains[generation] = self.chain

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
        """As the workers choose: by their chain, newest first, without what is in quarantine."""
        return sorted((m for m in self.whole() if self.takes(*m)), key=lambda m: (m[1], m[0]), reverse=True)

    def takes(self, generation: Generation, step: int) -> bool:
        return self.chain is not None and self.chain.admits(tuple(generation), step)

    def quarantine(self, points: set[tuple[Generation, int]]) -> None:
        """Damaged or poisoned: never restored, and no loss."""
        self.quarantined |= points
        self._look_again(self.best_on_chain)

    def _look_again(self, limit: int) -> None:
        left = [step for generation, step in self.whole() if self.admits(generation, step)]
        self.best_on_chain = min(limit, max(left, default=0))

    def repair(self) -> None:
        self.quarantined.clear()
