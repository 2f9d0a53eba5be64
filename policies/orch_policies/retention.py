"""Which checkpoints to keep: the union of the rules, and always the newest verified one.

Each rule looks at the checkpoints alone and knows nothing of the others, so their order does not matter, and one
rule more never deletes more. Each is stable: leaving out what it did not choose does not change what it chooses.
Applied after every save it therefore keeps what it would have kept had nothing ever been deleted.

Nothing is deleted here. The caller removes what `keep` does not name, manifest first, shards after.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

HOUR_US = 3_600_000_000


@dataclass(frozen=True)
class Checkpoint:
    """`generation` is (attempt, restart). `created_us`: the writer's clock, from the manifest. `verified`: its
    digests matched when it was written or last read. Quarantined checkpoints are not handed in: they are kept for
    a person to look at.
    """

    generation: tuple[int, int]
    step: int
    created_us: int
    verified: bool = True
    metrics: tuple[tuple[str, float], ...] = ()

    @property
    def place(self) -> tuple[tuple[int, int], int]:
        return self.generation, self.step


@dataclass(frozen=True)
class Best:
    """The best `count` by a metric. A value that is missing or not finite is never the best; of equal ones the
    newer is the better.
    """

    metric: str
    mode: Literal["min", "max"] = "min"
    count: int = 1


@dataclass(frozen=True)
class Rules:
    """What `keep` in the job file says.

    `last`: this many of the newest. `every_hours`: the oldest, and from there each that is at least so much younger
    than the one kept before it. `every_steps`: the first at or after each multiple. `best`: by a metric.
    `min_age_s`: everything that is younger. What one rule keeps does not count against another.
    """

    last: int = 5
    every_hours: float | None = None
    every_steps: int | None = None
    best: Best | None = None
    min_age_s: float | None = None

    @property
    def needs_manifests(self) -> bool:
        """Whether more must be known than generation and step."""
        return any(rule is not None for rule in (self.every_hours, self.best, self.min_age_s))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Rules:
        best = document.get("best")
        return cls(**{**document, "best": None if best is None else Best(**best)})


def keep(
    checkpoints: Iterable[Checkpoint],
    rules: Rules,
    *,
    pinned: Collection[tuple[tuple[int, int], int]] = (),
    now_us: int | None = None,
) -> dict[Checkpoint, str]:
    """What to keep, newest first, each with every rule that asks for it.

    Newest is by step, then by generation, never by clock: clocks differ between machines and go back.
    `pinned`: places (generation, step). `now_us` is needed for `min_age_s` alone.
    """
    newest_first = sorted(checkpoints, key=lambda c: (c.step, c.generation), reverse=True)
    reasons: dict[Checkpoint, list[str]] = {}
    for chosen, reason in _choices(newest_first, rules, pinned, now_us):
        reasons.setdefault(chosen, []).append(reason)
    return {c: ", ".join(reasons[c]) for c in newest_first if c in reasons}


def _choices(
    newest_first: list[Checkpoint],
    rules: Rules,
    pinned: Collection[tuple[tuple[int, int], int]],
    now_us: int | None,
) -> Iterator[tuple[Checkpoint, str]]:
    verified = next((c for c in newest_first if c.verified), None)
    if verified is not None:
        yield verified, "newest verified"
    for checkpoint in newest_first:
        if checkpoint.place in pinned:
            yield checkpoint, "pinned"
    for checkpoint in newest_first[: rules.last]:
        yield checkpoint, f"last {rules.last}"
    if rules.every_hours is not None:
        for checkpoint in _by_hours(newest_first, rules.every_hours):
            yield checkpoint, f"every {rules.every_hours:g} h"
    if rules.every_steps is not None:
        for checkpoint in _by_steps(newest_first, rules.every_steps):
            yield checkpoint, f"every {rules.every_steps} steps"
    if rules.best is not None:
        for checkpoint in _best(newest_first, rules.best):
            yield checkpoint, f"best {rules.best.count} by {rules.best.metric} ({rules.best.mode})"
    if rules.min_age_s is not None:
        if now_us is None:
            raise ValueError("min_age_s needs now_us")
        for checkpoint in newest_first:
            # One from the future was written by a clock that is wrong: kept, as long as its age is not known.
            if now_us - checkpoint.created_us < rules.min_age_s * 1e6:
                yield checkpoint, f"younger than {rules.min_age_s:g} s"


def _by_hours(newest_first: list[Checkpoint], hours: float) -> list[Checkpoint]:
    """As TensorFlow's CheckpointManager counts: from the last one that was kept, not by the clock's full hours.

    Where the clock has gone back, counting begins anew at that checkpoint: one more is kept, and none is waited
    for until the clock has caught up.
    """
    chosen: list[Checkpoint] = []
    for checkpoint in reversed(newest_first):
        since_us = checkpoint.created_us - chosen[-1].created_us if chosen else -1
        if since_us < 0 or since_us >= hours * HOUR_US:
            chosen.append(checkpoint)
    return chosen


def _by_steps(newest_first: list[Checkpoint], steps: int) -> list[Checkpoint]:
    """By multiples, since steps, unlike clocks, are the same in every run of a job."""
    first: dict[int, Checkpoint] = {}
    for checkpoint in reversed(newest_first):
        first.setdefault(checkpoint.step // steps, checkpoint)
    return list(first.values())


def _best(newest_first: list[Checkpoint], best: Best) -> list[Checkpoint]:
    sign = 1 if best.mode == "min" else -1
    scored = [(sign * value, c) for c in newest_first for name, value in c.metrics if name == best.metric]
    finite = [pair for pair in scored if math.isfinite(pair[0])]
    return [checkpoint for _, checkpoint in sorted(finite, key=lambda pair: pair[0])[: best.count]]
