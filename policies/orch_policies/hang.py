"""When a job counts as hung: no step for longer than its own steps let expect.

The limit is learned from the pauses between the job's steps, the longest of them, evaluations and saves of its own
included; the first step of a start, which compiles and loads, is learned apart. Before anything is killed by a learned
limit the stacks are looked at several times: a process whose stacks change is busy with something that is no step
(an evaluation that comes for the first time), and gets twice the time, up to a cap. The idea of asking the stacks: a
deadlock, a collective that nobody joins, a GIL held in C and a stopped process have in common that they stand still.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

FACTOR = 10.0
"""How much longer than the longest pause so far the next may be."""
FLOOR_S = 120.0
CAP_S = 3600.0
"""After so long without a step a job counts as hung even if its stacks change, and at its start."""
HANGS_DOUBLED_MAX = 5

Rule = float | str
"""`auto`, `off`, or seconds."""
Phase = Literal["starting", "stepping", "saving", "ending"]
"""starting: before the first new step of a start. saving: training waits for a slot, which is storage's to give.
ending: it has said `finished`, and not ended yet."""


@dataclass(frozen=True)
class Learned:
    """Of one job on one machine. `hangs`: how often it was already called hung since its last pause was learned."""

    longest_pause_s: float = 0.0
    longest_start_s: float = 0.0
    hangs: int = 0
    looked: int = 0
    """How often in this pause the stacks were seen to change."""

    def paused(self, pause_s: float, *, starting: bool) -> Learned:
        """A step has come, `pause_s` after the one before it (or after the start)."""
        if starting:
            return replace(self, longest_start_s=max(self.longest_start_s, pause_s), looked=0)
        return replace(self, longest_pause_s=max(self.longest_pause_s, pause_s), looked=0)

    def hung(self) -> Learned:
        return replace(self, hangs=self.hangs + 1, looked=0)

    def busy(self) -> Learned:
        """The limit was reached, and the stacks have changed."""
        return replace(self, looked=self.looked + 1)


@dataclass(frozen=True)
class Limit:
    """`seconds` None: no limit. `final`: whatever the stacks say."""

    seconds: float | None
    final: bool
    reason: str


def limit(rule: Rule, learned: Learned, phase: Phase) -> Limit:
    """How long there may be no step, from the last one (or the start) on."""
    if rule == "off":
        return Limit(None, final=True, reason="restart.hang is off")
    if phase == "saving":
        return Limit(None, final=True, reason="training waits for storage")
    if rule != "auto":
        if phase == "stepping":
            return Limit(float(rule), final=True, reason="as restart.hang says")
        return Limit(max(float(rule), CAP_S), final=True, reason=f"a start and an end may take {CAP_S:g} s")
    if phase == "ending":
        return Limit(CAP_S, final=True, reason=f"its end may take {CAP_S:g} s")
    longest_s = learned.longest_start_s if phase == "starting" else learned.longest_pause_s
    if phase == "starting" and not longest_s:
        return Limit(CAP_S, final=True, reason=f"its first start may take {CAP_S:g} s")
    # Who was called hung before and is again may only be slow: each time it gets longer.
    times = FACTOR * 2 ** min(learned.hangs, HANGS_DOUBLED_MAX)
    seconds = min(CAP_S, max(FLOOR_S * 2 ** min(learned.hangs, HANGS_DOUBLED_MAX), times * longest_s))
    seconds = min(CAP_S, seconds * 2**learned.looked)
    what = "start" if phase == "starting" else "pause between two steps"
    return Limit(
        seconds,
        final=seconds >= CAP_S,
        reason=f"its longest {what} was {longest_s:.3g} s",
    )


Action = Literal["wait", "look", "kill"]


def action(found: Limit, quiet_s: float) -> Action:
    """`look`: at the stacks, before anything is killed."""
    if found.seconds is None or quiet_s < found.seconds:
        return "wait"
    return "kill" if found.final else "look"
