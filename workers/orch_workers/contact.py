"""Does the cluster still hear this agent? Asked for as long as it lives; what the answers mean: orch_policies.lease."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from orch_policies.lease import Answer, Contact, Verdict, judge, limit_s, pause_s

log = logging.getLogger(__name__)

REASONS = {
    "expired": "the cluster has not answered for {out_s:.0f} s, longer than the lease of {lease_s:g} s",
    "void": "the cluster has given this node up",
}


class ContactWatch:
    """A thread that asks, and calls `on_over(verdict, reason)` once, when the agent must go."""

    def __init__(
        self,
        ask: Callable[[float], Answer],
        lease_s: float,
        on_over: Callable[[Verdict, str], None],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """`ask(limit_s)` waits no longer than that. What it raises is a fault of ours: nobody is ended for it."""
        self._ask, self._lease_s, self._on_over, self._now = ask, lease_s, on_over, now
        self._contact = Contact(now())
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="contact", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()

    def _run(self) -> None:
        while not self._stopped.wait(pause_s(self._contact, self._lease_s)):
            verdict = self.look()
            if verdict != "held":
                reason = REASONS[verdict].format(out_s=self._contact.out_s, lease_s=self._lease_s)
                self._on_over(verdict, reason)
                return

    def look(self) -> Verdict:
        """Asks once."""
        limit = limit_s(self._lease_s)
        turn_s = pause_s(self._contact, self._lease_s) + limit
        try:
            answer = self._ask(limit)
        except Exception:
            log.exception("the cluster could not be asked; the lease is kept")
            answer = "alive"
        self._contact = self._contact.heard(answer, self._now(), turn_s)
        return judge(self._contact, self._lease_s)
