"""Restart or not: what to do after a failure, which budget pays, and after what delay.

The leader decides with it when a training process ends, the controller when an agent or a node is lost, so
`Budgets`, `Charges` and `History` travel between the two as JSON. Both do the same after a decision::

    decision = decide(budgets, charges, history, failure, seed)
    charges, history = record(charges, history, failure, decision)

and tell what they see in between with `stepped` and `committed`. No clock and no random source in here: the
jitter comes from the seed.

What exit means what: DESIGN section 7.
"""

from __future__ import annotations

import random
import re
import signal as signals
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

Kind = Literal["process_exit", "fatal", "hang", "agent_lost", "node_lost", "preempted"]
"""process_exit: the training process ended without having finished. fatal: its state can never be loaded.
hang: killed because it made no progress. agent_lost, node_lost: the worker is gone; preempted: announced."""
Budget = Literal["failures", "hangs", "preemptions"]
Action = Literal["restart", "replace", "fail"]
"""restart: new training processes under the same agents. replace: a new agent is placed (a new attempt)."""

BACKOFF_FACTOR = 2.0
BACKOFF_JITTER = 0.25
"""A delay is its nominal value, or up to this part of it less."""
BACKOFF_DOUBLINGS_MAX = 64
MARKS_MAX = 64
"""Charges that can still be given back; the oldest beyond these stay spent."""
OWN_EXITS_MAX = 16
OUTPUT_TAIL_CHARS_MAX = 16_384
"""How much of the end of the output is looked at."""
ERROR_CHARS_MAX = 300

_IMPORT_ERRORS = ("ImportError", "ModuleNotFoundError")
_SYNTAX_ERRORS = ("SyntaxError", "IndentationError", "TabError")
_USAGE = re.compile(r"^usage: |can't open file|: syntax error|no such option", re.IGNORECASE | re.MULTILINE)
_TRACEBACK = "Traceback (most recent call last)"


@dataclass(frozen=True)
class Budgets:
    """From the job file. None: unlimited."""

    max_failures: int | None = 3
    max_hangs: int | None = 3
    max_preemptions: int | None = None
    backoff_initial_s: float = 1.0
    backoff_max_s: float = 300.0

    def limit(self, budget: Budget) -> int | None:
        limits = {
            "failures": self.max_failures,
            "hangs": self.max_hangs,
            "preemptions": self.max_preemptions,
        }
        return limits[budget]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_dict(data: dict[str, Any]) -> Budgets:
        return Budgets(**data)


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
        return asdict(self) | {"marks": [[mark.budget, mark.highest_step] for mark in self.marks]}

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
    """Failures since the last checkpoint beyond everything reached before them."""
    own_exits: tuple[int, ...] = ()
    """Steps at which the command ended itself with a non-zero exit and which no run has passed since."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"own_exits": list(self.own_exits)}

    @staticmethod
    def from_dict(data: dict[str, Any]) -> History:
        fields: dict[str, Any] = dict(data)
        fields["own_exits"] = tuple(data["own_exits"])
        return History(**fields)


@dataclass(frozen=True)
class Failure:
    """What was seen.

    `step`: the step at which this generation's process stood (the restored one before its first own step),
    None when it never said. `exit_code` is its own exit's; `signal` is the number of what killed it: one of
    the two is set for a process_exit. 127 stands for a command that could not be started. `output_tail`: the
    end of its output. `message`: for fatal what the process said, else the evidence ("node x dead since …").
    """

    kind: Kind
    exit_code: int | None = None
    signal: int | None = None
    step: int | None = None
    output_tail: str = ""
    message: str = ""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_dict(data: dict[str, Any]) -> Failure:
        return Failure(**data)


@dataclass(frozen=True)
class Decision:
    """`charge_to` is None when nothing is charged (action fail). `accuses_node`: the same command has worked
    before and now does not even start, so the machine is the suspect; who places jobs should know.
    """

    action: Action
    charge_to: Budget | None
    delay_s: float
    reason: str
    accuses_node: bool = False

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_dict(data: dict[str, Any]) -> Decision:
        return Decision(**data)


def decide(budgets: Budgets, charges: Charges, history: History, failure: Failure, seed: str) -> Decision:
    """The decision after one failure; `seed` should differ per job and failure (job id and generation)."""
    what = describe(failure)
    if failure.kind == "fatal":
        return _fail(f"{what}; a restart would load the same state")
    startup = startup_error(failure)
    if startup and max(history.highest_step, failure.step or 0) == 0:
        return _fail(f"{what} before the first step ({startup}); restarting cannot help")
    if _is_own_exit(failure) and failure.step is not None and failure.step in history.own_exits:
        return _fail(f"crash loop: {what}, for the second time at this step; restarting cannot help")
    budget = _budget_of(failure.kind)
    spent, limit = charges.spent(budget), budgets.limit(budget)
    if limit is not None and spent >= limit:
        return _fail(f"{what}; the budget for {budget} is used up ({spent} of {limit})")
    action: Action = "restart" if failure.kind in {"process_exit", "hang"} else "replace"
    delay_s = _delay_s(budgets, history, seed)
    verb = "restarting" if action == "restart" else "placing it again"
    when = f" in {delay_s:.1f} s" if delay_s else ""
    of = "" if limit is None else f" of {limit}"
    accused = f" ({startup}; it has run before, so the machine is suspected)" if startup else ""
    reason = f"{what}{accused}; {verb}{when}, {budget} {spent + 1}{of}"
    return Decision(action, budget, delay_s, reason, accuses_node=startup is not None)


def record(
    charges: Charges, history: History, failure: Failure, decision: Decision
) -> tuple[Charges, History]:
    """Charges and history after the decision has been taken."""
    step = failure.step
    highest = max(history.highest_step, step or 0)
    own = history.own_exits
    if step is not None:
        own = tuple(passed for passed in own if passed >= step)
        if _is_own_exit(failure) and step not in own:
            own = (*own, step)[-OWN_EXITS_MAX:]
    history = replace(history, highest_step=highest, fruitless=history.fruitless + 1, own_exits=own)
    budget = decision.charge_to
    if budget is not None:
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
    passed_all = len(beyond) == len(charges.marks)
    history = replace(
        history,
        committed_step=step,
        highest_step=max(history.highest_step, step),
        fruitless=0 if passed_all else history.fruitless,
        own_exits=tuple(own for own in history.own_exits if own >= step),
    )
    if beyond:
        newest = beyond[-1]
        mark = charges.marks[newest]
        marks = charges.marks[:newest] + charges.marks[newest + 1 :]
        spent: dict[str, Any] = {mark.budget: charges.spent(mark.budget) - 1}
        charges = replace(charges, marks=marks, given_back=charges.given_back + 1, **spent)
    return charges, history


def describe(failure: Failure) -> str:
    """What happened, as the first part of a sentence."""
    at = "" if failure.step is None else f" at step {failure.step}"
    detail = failure.message.strip()[:ERROR_CHARS_MAX]
    if failure.kind == "process_exit":
        error = error_line(failure.output_tail)
        return _exit_words(failure) + at + (f" ({error})" if error else "")
    words = {
        "fatal": "the state cannot be loaded",
        "hang": "no progress",
        "agent_lost": "the agent died",
        "node_lost": "the node went away",
        "preempted": "preempted",
    }
    return words[failure.kind] + at + (f": {detail}" if detail else "")


def error_line(output_tail: str) -> str:
    """The last line of the last Python traceback in it ("ValueError: bad"), or ""."""
    _, traceback, body = output_tail[-OUTPUT_TAIL_CHARS_MAX:].rpartition(_TRACEBACK)
    for line in body.splitlines()[1:] if traceback else body.splitlines():
        # A syntax error in the script itself comes without the traceback's first line.
        if line.startswith(_SYNTAX_ERRORS) or (traceback and line.strip() and not line[0].isspace()):
            return line.strip()[:ERROR_CHARS_MAX]
    return ""


def startup_error(failure: Failure) -> str | None:
    """What shows that the command cannot even begin (usage, missing file, import), or None.

    An exit code of 2 alone is not enough: many scripts use it for their own errors.
    """
    if failure.kind != "process_exit" or failure.signal is not None:
        return None
    if failure.exit_code in {126, 127}:
        return "command not found" if failure.exit_code == 127 else "command cannot be executed"
    error = error_line(failure.output_tail)
    if failure.exit_code == 1 and error.startswith(_IMPORT_ERRORS):
        return "import error"
    if failure.exit_code == 1 and error.startswith(_SYNTAX_ERRORS):
        return "syntax error"
    if failure.exit_code == 2 and _USAGE.search(failure.output_tail[-OUTPUT_TAIL_CHARS_MAX:]):
        return "usage error"
    return None


def _fail(reason: str) -> Decision:
    return Decision("fail", None, 0.0, reason)


def _is_own_exit(failure: Failure) -> bool:
    return failure.kind == "process_exit" and failure.signal is None and bool(failure.exit_code)


def _budget_of(kind: Kind) -> Budget:
    if kind == "hang":
        return "hangs"
    return "preemptions" if kind in {"node_lost", "preempted"} else "failures"


def _delay_s(budgets: Budgets, history: History, seed: str) -> float:
    """The first failure after progress restarts at once: one death says nothing about the next start, and
    recovery time is what it costs. Without progress between them delays double from the initial one.
    """
    if history.fruitless == 0:
        return 0.0
    doublings = min(history.fruitless - 1, BACKOFF_DOUBLINGS_MAX)
    nominal_s = min(budgets.backoff_initial_s * BACKOFF_FACTOR**doublings, budgets.backoff_max_s)
    jitter = random.Random(f"{seed}/{history.fruitless}").random() * BACKOFF_JITTER
    return round(nominal_s * (1 - jitter), 3)


def _exit_words(failure: Failure) -> str:
    if failure.signal is None:
        return f"exited with code {failure.exit_code}"
    try:
        name = signals.Signals(failure.signal).name
    except ValueError:
        name = f"signal {failure.signal}"
    return f"killed by {name}"
