"""When to checkpoint: every so many steps, seconds or epochs, whichever comes first.

Steps and epochs are counted by the training process itself (`Every.rules`, sent in the welcome message).
Seconds are the agent's: it asks for a save at a step that nobody has reached yet, so that all ranks save the
same one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

SECONDS_DEFAULT = 600.0
ASK_AGAIN_S_MIN = 1.0
"""A save that was asked for and did not happen (both slots busy) is asked for again after this, or after a
tenth of the interval."""
LEAD_STEPS_DEFAULT = 1


class TrainingRules(TypedDict):
    steps: int | None
    epochs: int | None
    first: bool
    last: bool


@dataclass(frozen=True)
class Every:
    """None: not by this measure. At least one is set, or only the first and the last step are saved."""

    steps: int | None = None
    seconds: float | None = SECONDS_DEFAULT
    epochs: int | None = None
    first: bool = True
    last: bool = True

    def rules(self) -> TrainingRules:
        """What the training process watches itself."""
        return {"steps": self.steps, "epochs": self.epochs, "first": self.first, "last": self.last}


@dataclass(frozen=True)
class Progress:
    """Times are CLOCK_MONOTONIC seconds of one machine.

    `step`: the highest any rank has completed. `saved_s`: when the newest snapshot was taken, for whatever
    reason, else when this generation began to train. `asked_step`, `asked_s`: the newest request.
    """

    step: int
    saved_s: float
    saved_step: int = 0
    asked_step: int = 0
    asked_s: float | None = None


@dataclass(frozen=True)
class Due:
    """`save_at`: ask for a save at the first step from this one on; None: nothing to do.
    `look_again_s`: seconds until the answer can change by the clock; None: not by the clock.
    """

    save_at: int | None
    look_again_s: float | None
    reason: str


def next_save(every: Every, progress: Progress, now_s: float, lead_steps: int = LEAD_STEPS_DEFAULT) -> Due:
    """`lead_steps`: how far ahead the step must lie so that no rank reaches it before it has heard."""
    if every.seconds is None:
        return Due(None, None, "no interval in seconds")
    left_s = progress.saved_s + every.seconds - now_s
    if left_s > 0:
        return Due(None, left_s, f"the last snapshot is younger than {every.seconds:g} s")
    if progress.step == 0:
        # Nothing has been trained yet; the first step is saved anyway.
        return Due(None, ASK_AGAIN_S_MIN, "no step yet")
    if progress.asked_s is not None and progress.asked_step > progress.saved_step:
        if progress.asked_step > progress.step:
            return Due(None, ASK_AGAIN_S_MIN, f"asked for step {progress.asked_step}, not reached yet")
        again_s = progress.asked_s + max(ASK_AGAIN_S_MIN, every.seconds / 10) - now_s
        if again_s > 0:
            return Due(None, again_s, f"asked for step {progress.asked_step} a moment ago")
    save_at = progress.step + lead_steps
    age_s = now_s - progress.saved_s
    return Due(save_at, None, f"the last snapshot is {age_s:.1f} s old, {every.seconds:g} s are asked for")
