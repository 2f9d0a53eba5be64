"""Microsoft Azure: scheduled events of this virtual machine (Azure docs, "Scheduled Events for Linux VMs").

Events are never acknowledged (StartRequests): that would start them at once, for everything on the machine, while
others may still need the time.
"""

from __future__ import annotations

from email.utils import parsedate_to_datetime
from typing import Any

from orch_workers.preemption.metadata import Answer, Metadata, unexpected
from orch_workers.preemption.notice import Kind, Moment, Notice, SourceError, deadline_at

INTERVAL_S = 2.0
EVENTS_MAX = 100
_EVENTS = "/metadata/scheduledevents?api-version=2020-07-01"
_OWN_NAME = "/metadata/instance/compute/name?api-version=2021-02-01&format=text"
_HEADERS = {"Metadata": "true"}
_NAME = "azure"
_KINDS: dict[str, Kind] = {
    "Preempt": "preempt",
    "Terminate": "preempt",
    "Reboot": "maintenance",
    "Redeploy": "maintenance",
    "Freeze": "rebalance",  # stands still for some seconds, and goes on
}
_WORDS = {
    "Preempt": "takes this spot machine back",
    "Terminate": "deletes this machine",
    "Reboot": "restarts this machine",
    "Redeploy": "moves this machine to another host, which restarts it",
    "Freeze": "pauses this machine for some seconds",
}


class Azure:
    name, interval_s, cloud = _NAME, INTERVAL_S, True

    def __init__(self, metadata: Metadata | None = None) -> None:
        self._metadata = metadata or Metadata()
        self._own = ""

    def probe(self) -> bool:
        answer = self._metadata.get(_OWN_NAME, _HEADERS)
        if answer.status != 200 or not answer.text or len(answer.text) > 256:
            return False
        self._own = answer.text
        # The first question for events switches them on, which may take minutes: `poll` is patient, this is not.
        return True

    def poll(self, now: Moment) -> Notice | None:
        """Of several events the one that ends the machine, else the first."""
        answer = self._metadata.get(_EVENTS, _HEADERS)
        if answer.status != 200:
            raise unexpected(answer)
        events = answer.document().get("Events")
        if not isinstance(events, list):
            raise SourceError("its answer has no list of events")
        notices = [self._notice(event, answer, now) for event in events[:EVENTS_MAX]]
        found = sorted((notice for notice in notices if notice is not None), key=_urgency)
        return found[0] if found else None

    def _notice(self, event: Any, answer: Answer, now: Moment) -> Notice | None:
        if not isinstance(event, dict):
            raise SourceError("an event of its answer is no object")
        resources, what = event.get("Resources"), event.get("EventType")
        if not isinstance(what, str) or not isinstance(resources, list) or self._own not in resources:
            return None  # of another machine of the same set
        kind = _KINDS.get(what)
        if kind is None or event.get("EventStatus") not in {"Scheduled", "Started"}:
            return None
        not_before = str(event.get("NotBefore") or "")
        when = f" (not before {not_before})" if not_before else " (under way)"
        at_s = _seconds(not_before) if not_before else answer.wall_s or now.wall_s
        return Notice(
            _NAME,
            kind,
            f"Azure {_WORDS[what]}{when}",
            f"azure {event.get('EventId')}",
            deadline_at(at_s, now, answer.wall_s),
        )


def _urgency(notice: Notice) -> tuple[bool, float]:
    return not notice.leaves, notice.deadline.monotonic_s if notice.deadline else 0.0


def _seconds(text: str) -> float:
    try:
        return parsedate_to_datetime(text).timestamp()
    except (TypeError, ValueError, OverflowError) as error:
        raise SourceError(f"{text[:40]!r} is no time") from error
