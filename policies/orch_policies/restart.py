"""Restart or not: what to do after a failure, which budget pays, and after what delay.

The leader decides with it when a training process ends, the controller when an agent or a node is lost, so
`Budgets`, `Charges` and `History` travel between the two as JSON. Both do the same after a decision::

    decision = decide(budgets, charges, history, failure, seed)
    charges, history = record(charges, history, failure, decision)

and tell what they see in between with `stepped` and `committed`. No clock and no random source in here: the
jitter comes from the seed. What happened, and what it is called: classification.py. The rules: DESIGN section 7.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Any, Literal

from orch_policies.classification import (
    CAUSES,
    Failure,
    Kind,
    advice,
    classify,
    describe,
    is_own_exit,
    startup_error,
)

__all__ = [
    "Action",
    "Budget",
    "Budgets",
    "Charges",
    "Decision",
    "Failure",
    "History",
    "Kind",
    "Mark",
    "committed",
    "decide",
    "describe",
    "record",
    "stepped",
]

Budget = Literal["failures", "hangs", "preemptions"]
BUDGETS: tuple[Budget, ...] = ("failures", "hangs", "preemptions")
Action = Literal["restart", "replace", "fail"]
"""restart: new training processes under the same agents. replace: a new agent is placed (a new attempt)."""

BACKOFF_FACTOR = 2.0
BACKOFF_JITTER = 0.25
"""A delay is its nominal value, or up to this part of it less."""
BACKOFF_DOUBLINGS_MAX = 64
MARKS_MAX = 64
"""Charges that can still be given back; the oldest beyond these stay spent."""
OWN_EXITS_MAX = 16
MAX_ROLLBACKS = 3
"""Times a job is rolled back for a loss that is no number, unless it says otherwise."""


@dataclass(frozen=True)
class Budgets:
    """From the job file. None: unlimited."""

    max_failures: int | None = 3
    max_hangs: int | None = 3
    max_preemptions: int | None = None
    backoff_initial_s: float = 1.0
    backoff_max_s: float = 300.0
    stop_codes: tuple[int, ...] = ()
    """Exit codes of the command that end the job at once."""
    restart_codes: tuple[int, ...] = ()
    """Exit codes with which the command asks to be started again."""
    on_nan: Literal["stop", "rollback"] = "stop"
    max_rollbacks: int = MAX_ROLLBACKS

    def limit(self, budget: Budget) -> int | None:
        limits = {
            "failures": self.max_failures,
            "hangs": self.max_hangs,
            "preemptions": self.max_preemptions,
        }
        return limits[budget]

    def to_dict(self) -> dict[str, Any]:
        codes = {name: list(getattr(self, name)) for name in ("stop_codes", "restart_codes")}
        return {**vars(self), **codes}

    @staticmethod
    def from_dict(data: dict[str, Any]) -> Budgets:
        codes = {name: tuple(data.get(name, ())) for name in ("stop_codes", "restart_codes")}
        return Budgets(**{**data, **codes})


@dataclass(frozen=True)
class Mark:
    """One charge that can still be given back: by a checkpoint beyond `highest_step`."""

    budget: Budget
    highest_step: int


@dataclass(frozen=True)
class Charges:
    """What is spent of each budget; `given_back` counts what progress has paid back, over the job's life."""

    failures: int = 0
    hangs: int = 0
    preemptions: int = 0
    given_back: int = 0
    marks: tuple[Mark, ...] = ()

    def spent(self, budget: Budget) -> int:
        amount: int = getattr(self, budget)
        return amount

    def to_dict(self) -> dict[str, Any]:
        return {**vars(self), "marks": [[mark.budget, mark.highest_step] for mark in self.marks]}

    @staticmethod
    def from_dict(data: dict[str, Any]) -> Charges:
        fields: dict[str, Any] = dict(data)
        fields["marks"] = tuple(Mark(budget, step) for budget, step in data["marks"])
        return Charges(**fields)


@dataclass(frozen=True)
class History:
    """What the job has lived through, as far as the policy needs it."""

    highest_step: int = 0
    """Highest step any generation completed; 0: none ever did."""
    committed_step: int = 0
    fruitless: int = 0
    """Charges to failures since the last checkpoint beyond everything reached before them."""
    fruitless_hangs: int = 0
    fruitless_preemptions: int = 0
    """The same of the other budgets: each has its own backoff."""
    own_exits: tuple[int, ...] = ()
    """Steps at which the command ended itself with a non-zero exit and which no run has passed since."""
    asked_step: int = -1
    """Highest step when the command last asked to be started again free of charge; -1: never."""
    rollbacks: int = 0
    """Times the job was rolled back for a loss that is no number."""

    def fruitless_of(self, budget: Budget) -> int:
        amount: int = getattr(self, _FRUITLESS[budget])
        return amount

    def to_dict(self) -> dict[str, Any]:
        return {**vars(self), "own_exits": list(self.own_exits)}

    @staticmethod
    def from_dict(data: dict[str, Any]) -> History:
        fields: dict[str, Any] = dict(data)
        fields["own_exits"] = tuple(data["own_exits"])
        return History(**fields)


@dataclass(frozen=True)
class Decision:
    """`charge_to` is None when nothing is charged: action fail, or a restart that the command asked for.
    `accuses_node`: the machine is the suspect (a GPU fault, or the same command has worked before and now does
    not even start); who places jobs should know.
    """

    action: Action
    charge_to: Budget | None
    delay_s: float
    reason: str
    accuses_node: bool = False

    def to_dict(self) -> dict[str, Any]:
        return dict(vars(self))

    @staticmethod
    def from_dict(data: dict[str, Any]) -> Decision:
        return Decision(**data)


_FRUITLESS: dict[Budget, str] = {
    "failures": "fruitless",
    "hangs": "fruitless_hangs",
    "preemptions": "fruitless_preemptions",
}


def decide(budgets: Budgets, charges: Charges, history: History, failure: Failure, seed: str) -> Decision:
    """The decision after one failure; `seed` should differ per job and failure (job id and generation)."""
    hopeless = _hopeless(budgets, history, failure)
    if hopeless:
        return Decision("fail", None, 0.0, hopeless)
    what = describe(failure)
    startup = startup_error(failure)
    asked = _asked_for(budgets, failure)
    if asked and max(history.highest_step, failure.step or 0) > history.asked_step:
        return Decision(
            "restart", None, 0.0, f"{what}, which asks for a restart; restarting, charged to nothing"
        )
    budget = _budget_of(failure.kind)
    spent, limit = charges.spent(budget), budgets.limit(budget)
    if limit is not None and spent >= limit:
        return Decision(
            "fail",
            None,
            0.0,
            f"{what}; the budget for {budget} is used up ({spent} of {limit}); {advice(failure)}",
        )
    action: Action = "replace" if failure.kind in {"agent_lost", "node_lost", "preempted"} else "restart"
    delay_s = _delay_s(budgets, history.fruitless_of(budget), seed)
    when = f" in {delay_s:.1f} s" if delay_s else ""
    of = "" if limit is None else f" of {limit}"
    accuses = startup is not None or CAUSES[classify(failure)].accuses_node
    why = ""
    if startup:
        why = "; it has run before, so the machine is suspected"
    elif accuses:
        why = "; the machine is suspected"
    elif asked:
        why = ", which asks for a restart, for the second time without a new step"
    verb = _verb(action, failure, history, budgets)
    reason = f"{what}{why}; {verb}{when}, {budget} {spent + 1}{of}"
    return Decision(action, budget, delay_s, reason, accuses_node=accuses)


def _hopeless(budgets: Budgets, history: History, failure: Failure) -> str:
    """Why no restart can help, whatever is left of the budgets; "" where one can."""
    what = describe(failure)
    if failure.kind == "fatal":
        return f"{what}; a restart would load the same state"
    if failure.kind == "bad_numbers":
        if budgets.on_nan == "stop":
            return f"{what}; stopped, as `restart.on_nan` says; {advice(failure)}"
        if history.rollbacks >= budgets.max_rollbacks:
            return (
                f"{what}; rolled back {history.rollbacks} times already, which is all that "
                f"`restart.max_rollbacks` allows; {advice(failure)}"
            )
        return ""
    if failure.signal is None and failure.exit_code in budgets.stop_codes and failure.kind == "process_exit":
        return f"{what}; stopped, as `restart.on_exit_codes` says of this code"
    if _asked_for(budgets, failure):
        return ""
    if startup_error(failure) and max(history.highest_step, failure.step or 0) == 0:
        return f"{what} before the first step; restarting cannot help; {advice(failure)}"
    if is_own_exit(failure) and failure.step is not None and failure.step in history.own_exits:
        return f"crash loop: {what}, for the second time at this step; restarting cannot help"
    return ""


def _verb(action: Action, failure: Failure, history: History, budgets: Budgets) -> str:
    if action == "replace":
        return "placing it again"
    if failure.kind == "bad_numbers":
        return f"rolling back ({history.rollbacks + 1} of {budgets.max_rollbacks})"
    return "restarting"


def record(
    charges: Charges, history: History, failure: Failure, decision: Decision
) -> tuple[Charges, History]:
    """Charges and history after the decision has been taken."""
    step = failure.step
    highest = max(history.highest_step, step or 0)
    budget = decision.charge_to
    if decision.action != "fail" and budget is None:
        return charges, replace(history, highest_step=highest, asked_step=highest)
    own = history.own_exits
    if step is not None:
        own = tuple(passed for passed in own if passed >= step)
        if is_own_exit(failure) and step not in own:
            own = (*own, step)[-OWN_EXITS_MAX:]
    rollbacks = history.rollbacks + (failure.kind == "bad_numbers" and budget is not None)
    history = replace(history, highest_step=highest, own_exits=own, rollbacks=rollbacks)
    if budget is not None:
        more: dict[str, Any] = {_FRUITLESS[budget]: history.fruitless_of(budget) + 1}
        history = replace(history, **more)
        marks = (*charges.marks, Mark(budget, highest))[-MARKS_MAX:]
        spent: dict[str, Any] = {budget: charges.spent(budget) + 1}
        charges = replace(charges, marks=marks, **spent)
    return charges, history


def stepped(history: History, step: int) -> History:
    """A generation has completed `step`. Cheap to call with every report."""
    return history if step <= history.highest_step else replace(history, highest_step=step)


def committed(charges: Charges, history: History, step: int) -> tuple[Charges, History]:
    """A checkpoint of `step` is committed. Beyond the highest step reached before a failure it gives that
    failure's charge back: one charge per checkpoint, the newest first. Repeating it changes nothing.
    """
    if step <= history.committed_step:
        return charges, history
    beyond = [index for index, mark in enumerate(charges.marks) if mark.highest_step < step]
    waiting = {mark.budget for mark in charges.marks if mark.highest_step >= step}
    passed: dict[str, Any] = {_FRUITLESS[budget]: 0 for budget in BUDGETS if budget not in waiting}
    history = replace(
        history,
        committed_step=step,
        highest_step=max(history.highest_step, step),
        own_exits=tuple(own for own in history.own_exits if own >= step),
        **passed,
    )
    if beyond:
        newest = beyond[-1]
        mark = charges.marks[newest]
        marks = charges.marks[:newest] + charges.marks[newest + 1 :]
        spent: dict[str, Any] = {mark.budget: charges.spent(mark.budget) - 1}
        charges = replace(charges, marks=marks, given_back=charges.given_back + 1, **spent)
    return charges, history


def _asked_for(budgets: Budgets, failure: Failure) -> bool:
    return (
        failure.kind == "process_exit"
        and failure.signal is None
        and failure.exit_code in budgets.restart_codes
    )


def _budget_of(kind: Kind) -> Budget:
    if kind == "hang":
        return "hangs"
    return "preemptions" if kind in {"node_lost", "preempted"} else "failures"


def _delay_s(budgets: Budgets, fruitless: int, seed: str) -> float:
    """The first failure after progress restarts at once: one death says nothing about the next start, and
    recovery time is what it costs. Without progress between them delays double from the initial one.
    """
    if fruitless == 0:
        return 0.0
    doublings = min(fruitless - 1, BACKOFF_DOUBLINGS_MAX)
    nominal_s = min(budgets.backoff_initial_s * BACKOFF_FACTOR**doublings, budgets.backoff_max_s)
    jitter = random.Random(f"{seed}/{fruitless}").random() * BACKOFF_JITTER
    return round(nominal_s * (1 - jitter), 3)
