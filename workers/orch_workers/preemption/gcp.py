"""Google Compute Engine: preemption of a spot machine, 30 seconds ahead, and host maintenance.

Google Cloud docs, "Preemptible VM instances" (instance/preempted) and "Monitor and plan for a host maintenance
event" (instance/maintenance-event). Asked every two seconds rather than with wait_for_change: one thread asks all
sources, and a call that hangs on purpose would keep it from the others.
"""

from __future__ import annotations

from pathlib import Path

from orch_workers.preemption.metadata import Answer, Metadata, unexpected
from orch_workers.preemption.notice import Moment, Notice, SourceError, deadline_in

INTERVAL_S = 2.0
PREEMPTED_LEFT_S = 25.0
"""Of the 30 seconds that Google gives, after an interval and an answer's time."""
TERMINATE_LEFT_S = 55.0
"""Of the minute that is the least notice before a machine is stopped for maintenance (an hour with GPUs)."""
_PREEMPTED = "/computeMetadata/v1/instance/preempted"
_MAINTENANCE = "/computeMetadata/v1/instance/maintenance-event"
_HEADERS = {"Metadata-Flavor": "Google"}
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_NAME = "gcp"


class Gcp:
    name, interval_s, cloud = _NAME, INTERVAL_S, True

    def __init__(self, metadata: Metadata | None = None) -> None:
        self._metadata = metadata or Metadata()
        self._since: dict[str, Moment] = {}

    def probe(self) -> bool:
        answer = self._metadata.get(_PREEMPTED, _HEADERS)
        return answer.status == 200 and answer.headers.get("metadata-flavor") == "Google"

    def poll(self, now: Moment) -> Notice | None:
        preempted = self._word(_PREEMPTED)
        if preempted == "TRUE":
            return self._notice(
                "preempted", f"Google Cloud preempts this machine within {PREEMPTED_LEFT_S:g} s", now
            )
        if preempted != "FALSE":
            raise SourceError(f"{preempted[:40]!r} is neither TRUE nor FALSE")
        event = self._word(_MAINTENANCE)
        if event == "TERMINATE_ON_HOST_MAINTENANCE":
            return self._notice("maintenance", "Google Cloud stops this machine for maintenance", now)
        if event == "MIGRATE_ON_HOST_MAINTENANCE":
            # It goes on elsewhere, after a pause of less than a second as a rule.
            reason = "Google Cloud moves this machine to another host while it runs"
            return Notice(_NAME, "rebalance", reason, f"gcp migrate {_boot()} {self._first('migrate', now)}")
        self._since.clear()
        return None

    def _notice(self, what: str, reason: str, now: Moment) -> Notice:
        self._first(what, now)
        left_s = PREEMPTED_LEFT_S if what == "preempted" else TERMINATE_LEFT_S
        return Notice(
            _NAME,
            "preempt" if what == "preempted" else "maintenance",
            reason,
            f"gcp {what} {_boot()}",  # neither is taken back while the machine runs
            deadline_in(left_s, self._since[what]),
        )

    def _first(self, what: str, now: Moment) -> int:
        """When this was first seen, in whole seconds: a later migration is another one."""
        return int(self._since.setdefault(what, now).wall_s)

    def _word(self, path: str) -> str:
        answer: Answer = self._metadata.get(path, _HEADERS)
        if answer.status != 200:
            raise unexpected(answer)
        if answer.headers.get("metadata-flavor") != "Google":
            raise SourceError("its answer is not Google's")
        return answer.text


def _boot() -> str:
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""
