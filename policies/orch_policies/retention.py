"""Which checkpoints to keep: the union of the rules, and always the newest verified one.

Nothing is deleted here. The caller removes what `keep` does not name, manifest first, shards after.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable

HOUR_US = 3_600_000_000


@dataclass(frozen=True)
class Checkpoint:
    """`generation` is (attempt, restart). `verified`: its digests matched when it was written or last read.
    Quarantined checkpoints are not handed in: they are kept for a person to look at.
    """

    generation: tuple[int, int]
    step: int
    committed_us: int
    verified: bool = True
    metrics: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Best:
    metric: str
    mode: Literal["min", "max"] = "min"
    count: int = 1


@dataclass(frozen=True)
class Rules:
    """`last`: this many of the newest. `every_hours`: the first of every such stretch of time, for ever.
    `best`: the best by a metric.
    """

    last: int = 5
    every_hours: float | None = None
    best: Best | None = None


def keep(checkpoints: Iterable[Checkpoint], rules: Rules) -> dict[Checkpoint, str]:
    """What to keep, newest first, each with the reason (the first rule that asks for it).

    Newest is by step, then by generation, never by clock: clocks differ between machines.
    """
    newest_first = sorted(checkpoints, key=lambda c: (c.step, c.generation), reverse=True)
    kept: dict[Checkpoint, str] = {}
    verified = next((c for c in newest_first if c.verified), None)
    if verified is not None:
        kept[verified] = "the newest verified"
    for chosen in (_last(newest_first, rules), _every_hours(newest_first, rules), _best(newest_first, rules)):
        for checkpoint, reason in chosen.items():
            kept.setdefault(checkpoint, reason)
    return {checkpoint: kept[checkpoint] for checkpoint in newest_first if checkpoint in kept}


def _last(newest_first: list[Checkpoint], rules: Rules) -> dict[Checkpoint, str]:
    return dict.fromkeys(newest_first[: rules.last], f"one of the newest {rules.last}")


def _every_hours(newest_first: list[Checkpoint], rules: Rules) -> dict[Checkpoint, str]:
    """Stretches are aligned to the clock, not to the first checkpoint: the choice of today is that of
    tomorrow, whatever has been deleted in between.
    """
    if rules.every_hours is None:
        return {}
    stretch_us = max(1, int(rules.every_hours * HOUR_US))
    first: dict[int, Checkpoint] = {}
    for checkpoint in reversed(newest_first):
        first.setdefault(checkpoint.committed_us // stretch_us, checkpoint)
    return dict.fromkeys(first.values(), f"the first of its {rules.every_hours:g} hours")


def _best(newest_first: list[Checkpoint], rules: Rules) -> dict[Checkpoint, str]:
    """Equal values: the newer wins. A checkpoint without the metric, or with nan, is never the best."""
    best = rules.best
    if best is None:
        return {}
    sign = 1 if best.mode == "min" else -1
    scored = [(sign * value, c) for c in newest_first for name, value in c.metrics if name == best.metric]
    ranked = sorted((pair for pair in scored if not math.isnan(pair[0])), key=lambda pair: pair[0])
    reason = f"one of the best {best.count} by {best.metric} ({best.mode})"
    return {checkpoint: reason for _, checkpoint in ranked[: best.count]}
