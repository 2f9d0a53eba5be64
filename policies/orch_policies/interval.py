"""When to checkpoint: every so many steps, seconds or epochs, whichever comes first, or as `young_daly` chooses.

Steps and epochs are counted by the training process itself (`Every.rules`, sent in the welcome message).
Seconds are the agent's: it asks for a save at a step that nobody has reached yet, so that all ranks save the
same one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

from orch_policies.young_daly import Cost, Seen, apart_s, choose, percent, span

SECONDS_DEFAULT = 600.0
ASK_AGAIN_S_MIN = 1.0
"""A save that was asked for and did not happen (both slots busy) is asked for again after this, or after a
tenth of the interval."""
LEAD_STEPS_DEFAULT = 1
STRETCHED = frozenset({"steps", "epochs"})
"""Reasons for a save, as the training process gives them, that `max_overhead` may put off to a later one. The first,
the last, one on demand and one before leaving are never put off; those by the clock come later in the first place.
"""


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
    auto: bool = False
    """The seconds are chosen (`pace`); steps and epochs do not count."""
    overhead_max: float | None = None
    """Share of the run time that saves may block, 0.01 for one percent."""

    def rules(self) -> TrainingRules:
        """What the training process watches itself."""
        return {"steps": self.steps, "epochs": self.epochs, "first": self.first, "last": self.last}


@dataclass(frozen=True)
class Pace:
    """`seconds`: by the clock; None: not by the clock. `apart_s`: saves by steps and epochs come no closer than
    this. `sentence`: all of it in one line for people.
    """

    seconds: float | None
    apart_s: float
    sentence: str

    def admits(self, reason: str, since_saved_s: float) -> bool:
        """Whether a save for `reason` may be taken so long after the last one."""
        return reason not in STRETCHED or since_saved_s >= self.apart_s


def pace(every: Every, cost: Cost | None, job: Seen = Seen(), others: Seen = Seen()) -> Pace:  # noqa: B008 - frozen
    """What `every` comes to with what saves cost here, and for `auto` with the failures of this job and of others."""
    if every.auto:
        chosen = choose(cost, job, others, every.overhead_max)
        return Pace(chosen.seconds, 0.0, f"every {span(chosen.seconds)} ({chosen.reason})")
    least_s = apart_s(cost, every.overhead_max)
    seconds = None if every.seconds is None else max(every.seconds, least_s)
    named = [f"{every.steps} steps"] if every.steps else []
    named += [span(every.seconds)] if every.seconds is not None else []
    named += [_epochs(every.epochs)] if every.epochs else []
    sentence = f"every {' or '.join(named)}" if named else "at the first and the last step"
    counted = every.steps is not None or every.epochs is not None
    # What is counted in steps or epochs may be stretched or not, as fast as they happen to pass.
    if cost is not None and least_s > 0 and (counted or seconds != every.seconds):
        at_least = f"at least {span(least_s)} apart for max_overhead {percent(every.overhead_max)}"
        sentence += f" ({'stretched' if not counted else 'where needed stretched'}: a save blocks"
        sentence += f" {span(cost.blocked_s)}, {at_least})"
    return Pace(seconds, least_s, sentence)


def _epochs(count: int) -> str:
    return "1 epoch" if count == 1 else f"{count} epochs"


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
