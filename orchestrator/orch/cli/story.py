"""What happened to a job, in sentences: events as `orch events` and whoever follows a job read them."""

from __future__ import annotations

import re
import signal
from typing import TYPE_CHECKING, Any

from orch.cli.humans import ABSENT, count, one_line, span
from orch.model.units import describe_size

if TYPE_CHECKING:
    from collections.abc import Callable

Document = dict[str, Any]

_PLAIN_WORDS = re.compile(r"(?<=[a-z])(?=[A-Z])")

ROUTINE = frozenset(
    {
        "Submitted",
        "TurnCame",
        "TurnLost",
        "GangGranted",
        "GangRemoved",
        "AgentUp",
        "ProcessStarted",
        "Progressed",
        "CheckpointCommitted",
        "Closed",
    }
)
"""Events of an undisturbed life: who follows a job's log is not told of them."""


def happened(event: Document) -> str:
    """One event as a sentence without its decision."""
    data = event.get("data") or {}
    make = _SENTENCES.get(event["type"])
    text = make(data) if make else _PLAIN_WORDS.sub(" ", event["type"]).lower()
    extra = [event.get("evidence"), data.get("evidence"), event.get("cause"), data.get("reason")]
    for more in dict.fromkeys(one_line(part) for part in extra if isinstance(part, str)):
        if more and more not in text:
            text += f": {more}" if ": " not in text else f"; {more}"
    return text


def told(event: Document) -> str:
    """What happened and what was decided about it."""
    decision = one_line(event.get("decision"))
    text = happened(event)
    return text if not decision or decision == "noted" or decision in text else f"{text} → {decision}"


def signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def end_of(code: int | None, signal_number: int | None) -> str:
    """How a process ended: `SIGKILL`, `exit code 1`; empty where it is not known."""
    if signal_number is not None:
        return signal_name(signal_number)
    return "" if code is None else f"exit code {code}"


def start_story(attempt: Document, restart: Document) -> str:
    """One start of the training processes: why, from what, at what price, and how it ended."""
    end = end_of(restart.get("exit_code"), restart.get("signal"))
    evidence = one_line(restart.get("evidence"))
    parts = [incident({"cause": attempt.get("reason"), **restart} if not restart.get("cause") else restart)]
    if evidence and (end or restart.get("ended")):
        parts.append(f"ended with {end} ({evidence})" if end else f"ended: {evidence}")
    elif end:
        parts.append(f"ended with {end}")
    return "; ".join(part for part in parts if part and part != ABSENT) or ABSENT


def incident(start: Document) -> str:
    """What made this start necessary, how it was seen, what was decided, and what it cost."""
    parts = [one_line(start.get("cause"))]
    seen, decision = one_line(start.get("seen")), one_line(start.get("decision"))
    if seen and seen not in parts[0]:
        parts.append(f"seen by: {seen}")
    if decision and decision not in parts[0]:
        parts.append(decision)
    if start.get("restored_step") is not None:
        parts.append(f"restored step {start['restored_step']} from {start.get('restored_from') or 'storage'}")
    if start.get("lost_steps") or (start.get("cause") and start.get("lost_steps") is not None):
        parts.append(_lost_work(start))
    if start.get("recovery_s") is not None:
        parts.append(f"first new step after {span(start['recovery_s'])}")
    return "; ".join(part for part in parts if part) or ABSENT


def _lost_work(data: Document) -> str:
    took = data.get("lost_s")
    return f"{count(data.get('lost_steps', 0), 'step')} lost" + (f" ({span(took)} of work)" if took else "")


def _exited(data: Document) -> str:
    if data.get("what"):
        more = f"; {data['advice']}" if data.get("advice") else ""
        return f"training process of rank {data.get('rank', 0)} {one_line(data['what'])}{more}"
    end = end_of(data.get("code"), data.get("signal"))
    return f"training process of rank {data.get('rank', 0)} ended{_with(end)}{_at(data)}"


def _ended(data: Document) -> str:
    code = data.get("exit_code")
    end = "" if code is None else f"exit code {code}"
    return f"worker of rank {data.get('rank', 0)} {data.get('outcome', 'ended')}{_with(end)}{_at(data)}"


def _lost(data: Document) -> str:
    what = "and its node are gone" if data.get("node_lost") else "is dead"
    if data.get("preempted") or data.get("node_state") == "draining":
        what += ", as was announced"
    silent_s = data.get("silent_s")
    unheard = f", not heard of for {span(silent_s)}" if silent_s else ""
    return f"agent of rank {data.get('rank', 0)} {what}{_at(data)}{unheard}"


def _noticed(data: Document) -> str:
    who = f"notice to rank {data.get('rank', 0)} by {data.get('source', '?')}"
    return who if data.get("leaves", True) else f"{who}, a warning"


def _restarting(data: Document) -> str:
    text = f"restart in place as generation {data.get('generation')}"
    if data.get("delay_s"):
        text += f" in {span(data['delay_s'])}"
    return text + (f", charged to {data['charge_to']}" if data.get("charge_to") else "")


def _recovered(data: Document) -> str:
    text = f"first new step {data.get('step')}"
    if data.get("recovery_s") is not None:
        text += f" after {span(data['recovery_s'])}"
    elif data.get("down_s") is not None:  # what its agent did not live to see, as the controller saw it
        text += f" after {span(data['down_s'])}"
    return f"{text}{_breakdown(data)}, {_lost_work(data)}"


def _breakdown(data: Document) -> str:
    parts = data.get("breakdown")
    if not isinstance(parts, dict):
        return ""
    began = "a standby took over" if data.get("standby") else "started"
    words = {"detected_s": "detected", "started_s": began, "set_up_s": "set up"}
    words |= {"restored_s": "restored", "first_step_s": "first step"}
    told = [f"{word} {float(parts[name]):.2f} s" for name, word in words.items() if name in parts]
    return f" ({', '.join(told)})"


def _restored(data: Document) -> str:
    return f"restored step {data.get('step')} from {data.get('source', 'storage')}"


def _committed(data: Document) -> str:
    size = data.get("size_bytes")
    return f"checkpoint of step {data.get('step')}" + (f", {describe_size(size)}" if size else "")


def _up(data: Document) -> str:
    node = one_line(data.get("node"))
    return f"agent of rank {data.get('rank', 0)} is up" + (f" on {node}" if node else "")


def _started(data: Document) -> str:
    return f"training process of rank {data.get('rank', 0)} started, generation {data.get('generation')}"


def _with(end: str) -> str:
    return f" with {end}" if end else ""


def _at(data: Document) -> str:
    return "" if data.get("step") is None else f" at step {data['step']}"


_SENTENCES: dict[str, Callable[[Document], str]] = {
    "Submitted": lambda _: "submitted",
    "GangGranted": lambda data: f"resources granted to attempt {data.get('attempt')}",
    "AgentUp": _up,
    "AgentLost": _lost,
    "PreemptionNoticed": _noticed,
    "PreemptRequested": lambda data: f"asked to leave its place within {span(data.get('grace_s', 0))}",
    "WorkerEnded": _ended,
    "ProcessStarted": _started,
    "ProcessExited": _exited,
    "RestartDecided": _restarting,
    "Restored": _restored,
    "Recovered": _recovered,
    "Progressed": lambda data: f"step {data.get('step')}",
    "CheckpointCommitted": _committed,
    "CancelRequested": lambda data: "cancel asked" + (", without grace" if data.get("now") else ""),
    "Closed": lambda _: "nothing of it is left running",
    "BlockedBecause": lambda _: "blocked",
}
