"""The chain: which checkpoints may be restored (DESIGN section 6).

A generation starts from a state that an earlier one wrote, so the history of a job is a tree, and its chain
the path from the newest generation back to the root: all steps of the newest, and of each ancestor the steps
up to the fork. What a superseded generation writes past its fork lies off the chain, whoever wrote first.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from orch_workers.training.slots import format_generation

if TYPE_CHECKING:
    from collections.abc import Mapping

Generation = tuple[int, int]


@dataclass(frozen=True)
class Fork:
    """An ancestor, and the last of its steps that lies on the chain."""

    generation: Generation
    until_step: int


@dataclass(frozen=True)
class Chain:
    """`parent` and `restored_step`: what the generation started from; None and 0: from nothing."""

    generation: Generation
    parent: Generation | None = None
    restored_step: int = 0
    ancestors: tuple[Fork, ...] = ()
    """Newest first."""
    damage: str = field(default="", compare=False)
    """Why its record does not read; then what it descends from is not known."""

    @staticmethod
    def root(generation: Generation) -> Chain:
        """The chain of a generation that starts from nothing."""
        return Chain(tuple_of(generation))

    def fork(self, generation: Generation, parent: Generation, restored_step: int) -> Chain:
        """The chain of `generation`, which restored what `parent`, on this chain, saved at
        `restored_step`.
        """
        generation, parent = tuple_of(generation), tuple_of(parent)
        if generation <= self.generation:
            raise ValueError(
                f"generation {format_generation(generation)} is not newer than its parent's chain"
            )
        if not self.admits(parent, restored_step):
            raise ValueError(
                f"step {restored_step} of generation {format_generation(parent)} is not on the chain of "
                f"{format_generation(self.generation)}"
            )
        lineage = (Fork(self.generation, restored_step), *self.ancestors)
        older = [
            Fork(f.generation, min(f.until_step, restored_step)) for f in lineage if f.generation <= parent
        ]
        return Chain(generation, parent, restored_step, tuple(older))

    def admits(self, generation: Generation, step: int) -> bool:
        """Whether a checkpoint of `generation` at `step` is a restore point."""
        if generation == self.generation:
            return True
        return any(f.generation == generation and step <= f.until_step for f in self.ancestors)

    def to_json(self) -> dict[str, Any]:
        return {
            "generation": format_generation(self.generation),
            "parent": None if self.parent is None else format_generation(self.parent),
            "restored_step": self.restored_step,
            "ancestors": [
                {"generation": format_generation(f.generation), "until_step": f.until_step}
                for f in self.ancestors
            ],
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Chain:
        """Raises ValueError, TypeError or KeyError when the document is none of ours."""
        parent = document["parent"]
        ancestors = tuple(
            Fork(strict_generation(f["generation"]), _step(f["until_step"])) for f in document["ancestors"]
        )
        return cls(
            strict_generation(document["generation"]),
            None if parent is None else strict_generation(parent),
            _step(document["restored_step"]),
            ancestors,
        )


def tuple_of(generation: Generation) -> Generation:
    """A plain pair, whatever subclass of tuple came in."""
    attempt, restart = generation
    return (attempt, restart)


def strict_generation(text: str) -> Generation:
    """Parses exactly what `format_generation` writes; ValueError otherwise."""
    attempt, _, restart = text.partition(".")
    if not (attempt.isascii() and restart.isascii() and attempt.isdigit() and restart.isdigit()):
        raise ValueError(f"{text!r} is no generation")
    generation = (int(attempt), int(restart))
    if format_generation(generation) != text:
        raise ValueError(f"{text!r} is no generation")
    return generation


def _step(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{value!r} is no step")
    return value
