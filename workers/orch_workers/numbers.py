"""The loss that a training process tells: NaN or infinite, and since when (DESIGN section 7).

The training side looks at each step's loss where it lies in the host's memory, and tells a bad one at once, with its
step: then the step is the first bad one. A loss on a GPU is copied in the background and told up to half a second
later (nothing waits for the GPU), so the first bad step may lie before the one that was told, after the last good
one. What was saved in between decides for itself: each snapshot holds the loss of its own step.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from orch.model.generation import Generation
from orch_policies.classification import Failure

if TYPE_CHECKING:
    from orch_workers.keeper import Keeper
    from orch_workers.process.launch import Launcher

_LOSS = re.compile(r"loss$", re.IGNORECASE)
_BAD = ("nan", "inf", "-inf")
"""As the training side writes numbers that JSON does not have (training/metrics.py)."""


class Stretch(NamedTuple):
    """What is bad: everything from `bad_step` on, and of what lies after `good_step` what says so itself."""

    good_step: int
    bad_step: int
    until_step: int
    """The step that was told to be bad: its data is left out, and what lies before."""
    reason: str


def merged(stretches: Sequence[Stretch]) -> Stretch:
    """Of several ranks, which see it at different steps: what is bad for one is bad for all."""
    first = min(stretches, key=lambda stretch: stretch.bad_step)
    return Stretch(
        min(stretch.good_step for stretch in stretches),
        first.bad_step,
        max(stretch.until_step for stretch in stretches),
        first.reason,
    )


def bad_losses(values: Mapping[str, Any]) -> dict[str, str]:
    """Metrics that are called loss (`loss`, `val_loss`) and are no number."""
    return {name: value for name, value in values.items() if _LOSS.search(name) and value in _BAD}


class LossWatch:
    """One start after the other. Used by the worker's loop alone."""

    def __init__(self) -> None:
        self._restored = self._good = 0
        self.stretch: Stretch | None = None

    def began(self) -> None:
        self._restored = self._good = 0
        self.stretch = None

    def restored(self, step: int) -> None:
        self._restored = self._good = step

    def look(self, step: int, values: Mapping[str, Any]) -> Failure | None:
        """The failure, once, when a loss is no number."""
        bad = bad_losses(values)
        if not bad:
            if any(_LOSS.search(name) for name in values):
                self._good = max(self._good, step)
            return None
        if self.stretch is not None:
            return None
        name, value = next(iter(bad.items()))
        said = f"{name} is {value} at step {step}"
        if step == self._restored + 1 > 1:
            # It was bad at once: the state it began with is, too, though its own loss was a number.
            self.stretch = Stretch(
                self._restored - 1, self._restored, step, f"the step after it was bad: {said}"
            )
        else:
            self.stretch = Stretch(self._good, step, step, said)
        return Failure(
            "bad_numbers",
            step=step,
            message=f"{name} is {value}; step {self._good} was the last one known to be good",
        )

    def leave_behind(
        self, keeper: Keeper, launcher: Launcher, generation: Generation
    ) -> list[tuple[str, int]]:
        """What was saved while the loss was bad is never restored, and a next start leaves that stretch's data out.

        The process of `generation` is gone. Returns the checkpoints that were marked: generation and step.
        """
        stretch = self.stretch
        assert stretch is not None
        launcher.leave_out = ((generation.attempt, generation.restart + 1), stretch.until_step)
        return [(str(Generation(*place)), step) for place, step in keeper.poison(stretch)]

    def sentence(self, marked: Sequence[tuple[str, int]]) -> str:
        """What a person should know of it."""
        assert self.stretch is not None
        steps = ", ".join(str(step) for _, step in marked)
        return self.stretch.reason + (
            f"; the checkpoints of steps {steps} are marked poisoned" if marked else ""
        )
