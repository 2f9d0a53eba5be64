"""One rank's part in the talk of its gang: tells the leader how it stands, and does what the leader orders.

The thread in here is neither the worker's loop nor Ray's: what the gang agrees on goes on while the worker waits for
storage at its end. Messages may be lost, late or doubled: each is the sender's whole state (words.py), said again
every RESEND_S.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Protocol

from orch.model.generation import Generation
from orch_workers.gang.leader import Leader
from orch_workers.gang.words import (
    IDLE,
    OVER,
    SETTING_UP,
    UP,
    Farewell,
    Leave,
    Order,
    Place,
    Point,
    Proposal,
    Report,
    Rollback,
    Save,
    Say,
    Start,
)

RESEND_S = 0.5
LOOK_S = 0.25
"""How often the leader looks at its reports when none has changed: delays and deadlines pass."""

log = logging.getLogger(__name__)


class Holdings(Protocol):
    """What a keeper is to the gang's talk."""

    def holds(self) -> tuple[Point, ...]: ...
    def written(self) -> tuple[Point, ...]: ...
    def lineage(self) -> dict[str, Any] | None: ...
    @property
    def newest_commit(self) -> Point | None: ...
    def heard(self, report: Report) -> None: ...
    def committed(self, point: Point) -> None: ...
    def propose(self, proposal: Proposal, answer: Callable[[str], None]) -> None: ...
    def settle(self, generation: Generation, nothing: bool) -> None: ...


class Rank(Protocol):
    """The worker, as far as its gang needs it. Every call returns at once."""

    def look(self) -> dict[str, Any]:
        """Fields of the report that change by themselves."""
        ...

    def begin(self, start: Start) -> None: ...
    def end(self, generation: Generation) -> None: ...
    def roll_back(self, rollback: Rollback) -> None:
        """When this returns, nothing of the stretch is among what this rank holds."""

    def save_at(self, save: Save) -> None: ...
    def leave(self, leave: Leave) -> None: ...
    def finish(self) -> None: ...
    def hold_on(self, *, waits: bool) -> None:
        """`waits`: some rank waits for storage."""


class Member:
    """Thread-safe. `tell` and `heard` may be called from any thread."""

    def __init__(
        self, first: Report, rank: Rank, say: Say, world_size: int, *, starts_settled: bool = False
    ) -> None:
        """`first`: how it stands at the beginning. `starts_settled`: no process is started before what it begins with
        is in its place everywhere, because it looks there by itself.
        """
        self._rank, self._say, self._world_size = rank, say, world_size
        self._changed = threading.Condition()
        self._report = replace(first, phase=SETTING_UP)
        self._farewell_until_s = 0.0
        self._poked = True
        self._closed = False
        self._order: Order | None = None
        self._ended = Generation(0, 0)
        self._keeper: Holdings | None = None
        self._starts_settled = starts_settled
        self._leader: Leader | None = None
        self._reports: dict[int, Report] = {}
        self._done: dict[str, Any] = {}
        self._sent_s = 0.0
        self._thread = threading.Thread(target=self._run, name="gang", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def lead(self, leader: Leader) -> None:
        """Before `start`: this is the leader's own agent."""
        self._leader = leader

    def close(self, limit_s: float) -> None:
        """Says nothing more, and does nothing more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if threading.current_thread() is not self._thread and self._thread.is_alive():
            self._thread.join(limit_s)

    # from any thread

    def ready(self, keeper: Holdings) -> None:
        """The worker has all that a start needs."""
        with self._changed:
            self._keeper = keeper
        self.tell(phase=IDLE)

    def tell(self, **facts: Any) -> None:
        """Something is different in this rank's report."""
        with self._changed:
            self._report = replace(self._report, **facts)
        self.poke()

    def poke(self) -> None:
        with self._changed:
            self._poked = True
            self._changed.notify_all()

    def standing(self) -> list[Report]:
        """The newest report of every rank of this attempt, for the leader, by rank."""
        with self._changed:
            attempt, reports = self._report.attempt, sorted(self._reports.items())
        return [report for _, report in reports if report.attempt == attempt]

    def farewell(self, outcome: str, reason: str, left_s: float) -> None:
        """The worker was told to end, its process within `left_s`."""
        with self._changed:
            self._farewell_until_s = time.monotonic() + left_s
        self.tell(farewell=Farewell(outcome=outcome, reason=reason, left_s=left_s))

    def begins(self, generation: Generation) -> bool:
        """Right before a process of `generation` is started: False when it is to be ended already."""
        with self._changed:
            if generation <= self._ended or self._closed:
                return False
            self._report = replace(
                self._report, phase=UP, generation=generation, end=None, hang=None, listens=False, step=0
            )
        self.poke()
        return True

    def is_ended(self, generation: Generation) -> bool:
        """Whether the leader has ordered its end."""
        with self._changed:
            return generation <= self._ended

    def heard(self, document: Mapping[str, Any]) -> None:
        """A message from another agent of the job."""
        try:
            if document["kind"] == "report":
                self._heard_report(Report.from_dict(document["report"]))
            else:
                self._heard_order(Order.from_dict(document["order"]))
        except (KeyError, ValueError, TypeError):
            log.exception("a message of the gang does not read")

    def _heard_report(self, report: Report) -> None:
        with self._changed:
            known = self._reports.get(report.rank)
            if known is not None and _age(known) >= _age(report):
                return
            self._reports[report.rank] = report
        if self._keeper is not None and report.attempt == self._report.attempt:
            self._keeper.heard(report)
        self.poke()

    def _heard_order(self, order: Order) -> None:
        with self._changed:
            if order.attempt != self._report.attempt:
                return  # of another attempt, which the controller will tell of, or has ended
            if self._order is not None and order.number <= self._order.number:
                return
            self._order = order
        self.poke()

    # the thread

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._poked or self._closed, timeout=LOOK_S)
                if self._closed:
                    return
                poked, self._poked = self._poked, False
            try:
                self._once(poked=poked)
            except Exception:
                # The next round has everything again; a fault that stays shows as a gang that waits, and says so here.
                log.exception("the gang's talk met a fault")
                time.sleep(LOOK_S)

    def _once(self, *, poked: bool) -> None:
        report = self._fresh_report()
        due = time.monotonic() - self._sent_s >= RESEND_S
        if self._leader is not None:
            before = self._order
            with self._changed:
                self._reports[report.rank] = report
                reports = dict(self._reports)
            if self._keeper is not None:
                self._keeper.heard(report)
                if (newest := self._keeper.newest_commit) is not None:
                    self._leader.committed(newest)
            order = self._leader.look(reports, time.monotonic())
            if order != before or due:
                self._sent_s = time.monotonic()
                for rank in range(1, self._world_size):
                    self._say(rank, {"kind": "order", "order": order.to_dict()})
            with self._changed:
                self._order = order
        elif poked or due:
            self._sent_s = time.monotonic()
            self._say(0, {"kind": "report", "report": report.to_dict()})
        if self._order is not None:
            self._obey(self._order)

    def _fresh_report(self) -> Report:
        looked = self._rank.look()
        with self._changed:
            report = replace(self._report, **looked, number=self._report.number + 1)
            if report.farewell is not None:
                left_s = max(0.0, self._farewell_until_s - time.monotonic())
                report = replace(report, farewell=replace(report.farewell, left_s=left_s))
            keeper = self._keeper
            self._report = report
        if keeper is not None:
            chain = keeper.lineage() if report.phase == IDLE else None
            report = replace(report, holds=keeper.holds(), written=keeper.written(), chain=chain)
        return report

    # doing what is ordered: each part once

    def _obey(self, order: Order) -> None:
        if order.end is not None and self._is_new("end", order.end):
            with self._changed:
                self._ended = max(self._ended, order.end)
            self._rank.end(order.end)
        if self._keeper is None or self._report.phase == OVER:
            self._acts_by(order)
            return
        if (
            order.start is not None
            and self._may_start(order)
            and self._is_new("start", order.start.generation)
        ):
            self._rank.begin(order.start)
        if order.rollback is not None and self._is_new("rollback", order.rollback.generation):
            self._rank.roll_back(order.rollback)
        if order.proposal is not None and self._is_new("proposal", order.proposal.number):
            self._propose(order.proposal, self._keeper)
        if order.proposal is not None and order.settled == order.proposal.number:
            self._keeper.settle(order.proposal.generation, nothing=order.proposal.point is None)
        if order.save is not None and self._is_new("save", order.save.number):
            self._rank.save_at(order.save)
        if order.leave is not None and self._is_new("leave", 1):
            self._rank.leave(order.leave)
        if order.finish and self._leader is None and self._is_new("finish", 1):
            self._rank.finish()
        if (
            order.committed is not None
            and self._leader is None
            and self._is_new("committed", order.committed)
        ):
            self._keeper.committed(order.committed)
        self._rank.hold_on(waits=order.waits)
        self._acts_by(order)

    def _may_start(self, order: Order) -> bool:
        proposal = order.proposal
        return not self._starts_settled or (proposal is not None and proposal.number == order.settled)

    def _acts_by(self, order: Order) -> None:
        if order.number > self._report.heard:
            self.tell(heard=order.number)

    def _is_new(self, what: str, mark: Any) -> bool:
        if self._done.get(what) == mark:
            return False
        self._done[what] = mark
        return True

    def _propose(self, proposal: Proposal, keeper: Holdings) -> None:
        def answer(why: str) -> None:
            if why:
                self.tell(refused=proposal.number, why=why)
            else:
                self.tell(prepared=proposal.number)

        keeper.propose(proposal, answer)


def first_report(attempt: int, placed: int, rank: int, place: Place) -> Report:
    return Report(
        rank=rank,
        attempt=attempt,
        placed=placed,
        number=0,
        place=place,
        phase=SETTING_UP,
        generation=Generation(attempt, 0),
    )


def _age(report: Report) -> tuple[int, int, int]:
    return report.attempt, report.placed, report.number
