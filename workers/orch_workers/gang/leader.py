"""The leader's decisions about its gang. Pure: reports and the time in, an order out; docs/gangs.md tells it in words.

One stage after the other, for as long as the attempt lasts:

gather    every rank has reported, and no process of the gang lives anywhere
run       processes of one generation are started, agree on what they restore, train, save the same steps
down      one of them has ended or hangs: all are ended, and when nothing of them is left the policy decides
leave     somebody was told to end: all save one step that nobody has reached, and leave
finish    every process has ended with success: what is to be kept is brought home
over      nothing more is ordered: the job has failed or waits for a person

The loss of an agent is not decided here: the controller raises the attempt, and a new Leader begins.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from orch.model.generation import Generation
from orch_policies.classification import Failure
from orch_policies.gang import Ended, lead_steps, lost_a_peer, root_cause
from orch_policies.restart import Decision
from orch_workers.gang.rendezvous import master_address, peers, seats
from orch_workers.gang.words import (
    FAILED,
    IDLE,
    OVER,
    SUCCEEDED,
    UP,
    End,
    Leave,
    Order,
    Point,
    Proposal,
    Report,
    Rollback,
    Save,
    Start,
)
from orch_workers.numbers import Stretch, merged

SAVE_TRIES_MAX = 8
"""So many steps are named for one save, each further ahead, before it is given up until it is due again."""
EXPLAIN_S = 1.0
"""How long an end that only says that another rank is gone waits for that one's."""
AGREE_SHARE = 0.5
"""Part of the time for leaving that may be spent on agreeing about a step."""


@dataclass(frozen=True)
class Candidate:
    """Something to begin with (None: nothing), and the chain of the generation that does."""

    point: Point | None
    chain: Mapping[str, Any]


class Hands(Protocol):
    """What the leader has done; every call returns at once."""

    def find(self, generation: Generation, reports: Mapping[int, Report], refused: Sequence[Point]) -> None:
        """Looks for what `generation` can begin with, `refused` left out; the answer goes to `Leader.found`."""

    def decide(self, rank: int, end: End, following: Generation) -> Decision:
        """Asks the restart policy about a failure, books it and writes the decision down."""
        ...

    def fail(self, rank: int, end: End, reason: str) -> None: ...
    def unrestorable(self, why: str) -> None:
        """There were states, and not one of them can be had by all ranks."""

    def finish(self) -> None:
        """The others are over: the leader's own worker may end."""


class Leader:
    """Not for several threads. `look` with the newest reports whenever one has changed, and every moment."""

    def __init__(
        self, attempt: int, placed: int, world_size: int, hands: Hands, fresh_port: Callable[[int], int]
    ) -> None:
        self._world_size, self._hands, self._fresh_port = world_size, hands, fresh_port
        self.order = Order(attempt=attempt, placed=placed)
        self.stage = "gather"
        self._generation = Generation(attempt, 0)
        self._not_before_s = 0.0
        self._candidates: list[Candidate] | None = None
        self._refused: dict[Point, str] = {}
        self._looked_everywhere = False
        self._proposals = self._saves = self._saves_asked = self._saves_wanted = 0
        self._save_tries: int | None = None
        self._down_since = self._rolled_back = 0
        self._hangs: dict[int, Mapping[str, Any]] = {}
        self._explain_until_s = 0.0
        self._leave_until_s: float | None = None
        self._agree_until_s = 0.0

    # told from outside

    def found(self, generation: Generation, candidates: Sequence[Candidate], *, everywhere: bool) -> None:
        """Newest first. Not `everywhere`: only memory was looked at, which is enough as long as nobody refuses."""
        if generation == self._generation:
            self._candidates, self._looked_everywhere = list(candidates), everywhere

    def save(self) -> None:
        """A save is due: all ranks should save a step that nobody has reached."""
        self._saves_asked += 1

    def committed(self, point: Point) -> None:
        self._say(committed=point)

    # looking

    def look(self, reports: Mapping[int, Report], now_s: float) -> Order:
        present = {
            rank: report
            for rank, report in sorted(reports.items())
            if report.attempt == self.order.attempt and rank < self._world_size
        }
        if self.stage not in {"finish", "over"}:
            self._mind_the_end(present, now_s)
        {
            "gather": self._gather,
            "run": self._run,
            "down": self._down,
            "leave": self._leave,
            "finish": self._finish,
            "over": lambda *_: None,
        }[self.stage](present, now_s)
        self._say(waits=any(report.waits for report in present.values()))
        return self.order

    def _say(self, **changes: Any) -> None:
        changed = replace(self.order, **changes)
        if changed != self.order:
            self.order = replace(changed, number=self.order.number + 1)

    def _mind_the_end(self, present: Mapping[int, Report], now_s: float) -> None:
        """One whose worker is over, or was told to end, takes the others along."""
        gone = [report for report in present.values() if report.phase == OVER]
        told = [report.farewell for report in present.values() if report.farewell is not None]
        if any(report.outcome in {"failed", "blocked"} for report in gone):
            self._say(end=self._generation, save=None)
            self.stage = "over"
        elif self.stage != "leave" and (told or gone):
            left_s = min((farewell.left_s for farewell in told), default=0.0)
            self._leave_until_s, self._agree_until_s = now_s + left_s, now_s + left_s * AGREE_SHARE
            ran, self.stage = self.stage == "run", "leave"
            reasons = [farewell.reason for farewell in told if farewell.reason]
            if ran and left_s > 0 and not gone and self._can_agree(present):
                self._save_tries = None
                self._name_step(present)
            else:
                self._order_leave(0, now_s, reasons)

    # gather

    def _gather(self, present: Mapping[int, Report], now_s: float) -> None:
        ready = len(present) == self._world_size and all(
            report.phase == IDLE and report.heard >= self._rolled_back for report in present.values()
        )
        if not ready or now_s < self._not_before_s:
            return
        places = {rank: report.place for rank, report in present.items()}
        taken = self.order.start.master_port if self.order.start is not None else 0
        self._generation = Generation(self._generation.attempt, self._generation.restart + 1)
        start = Start(
            generation=self._generation,
            master_addr=master_address(places),
            master_port=self._fresh_port(taken),
            seats=seats(places),
            peers=peers(places, {rank: report.port for rank, report in present.items()}),
        )
        self._candidates, self._refused, self._save_tries = None, {}, None
        self._saves_wanted = max(report.wants_save for report in present.values())
        self._saves_asked, self._hangs, self._explain_until_s = 0, {}, 0.0
        self.stage = "run"
        self._say(start=start, proposal=None, settled=0, save=None)
        self._hands.find(self._generation, present, ())

    # run

    def _run(self, present: Mapping[int, Report], now_s: float) -> None:
        ends = self._ends(present)
        failed = _failed(ends)
        if failed and self._may_explain(failed, len(ends), now_s):
            return
        if failed or self._all_hang(present, ends):
            self._hangs = {rank: report.hang for rank, report in present.items() if report.hang is not None}
            self.stage = "down"
            self._say(end=self._generation, save=None)
            self._down_since = self.order.number
        elif len(ends) == self._world_size and all(end.how == SUCCEEDED for end in ends.values()):
            self.stage = "finish"
            self._say(finish=True, save=None)
            self._finish(present, now_s)
        else:
            self._agree_what_to_restore(present)
            self._agree_what_to_save(present)

    def _may_explain(self, failed: Sequence[Ended], ended: int, now_s: float) -> bool:
        """Whether to wait for the end of a rank that the others have lost: its sockets close before it has ended, and
        killed now it could not say any more what was wrong with it.
        """
        if ended == self._world_size or not all(lost_a_peer(one.failure) for one in failed):
            return False
        self._explain_until_s = self._explain_until_s or now_s + EXPLAIN_S
        return now_s < self._explain_until_s

    def _ends(self, present: Mapping[int, Report]) -> dict[int, End]:
        return {
            rank: report.end
            for rank, report in present.items()
            if report.end is not None and report.end.generation == self._generation
        }

    def _all_hang(self, present: Mapping[int, Report], ends: Mapping[int, End]) -> bool:
        """One that is busy while the others wait for it is no hang: so every process that lives must stand still."""
        alive = [report for rank, report in present.items() if rank not in ends]
        return bool(alive) and len(present) == self._world_size and all(r.hang is not None for r in alive)

    def _agree_what_to_restore(self, present: Mapping[int, Report]) -> None:
        proposal = self.order.proposal
        if self._candidates is None or (proposal is not None and proposal.number == self.order.settled):
            return
        answers = list(present.values())
        if proposal is not None:
            refusal = next((r for r in answers if r.refused == proposal.number), None)
            if refusal is None:
                if len(answers) == self._world_size and all(r.prepared == proposal.number for r in answers):
                    self._say(settled=proposal.number)
                return
            if proposal.point is not None and proposal.point not in self._refused:
                self._refused[proposal.point] = f"{proposal.point}: rank {refusal.rank}: {refusal.why}"
        if not self._candidates:
            self._look_further(present)
            return
        candidate = self._candidates.pop(0)
        self._proposals += 1
        self._say(
            proposal=Proposal(
                number=self._proposals,
                generation=self._generation,
                point=candidate.point,
                chain=candidate.chain,
            )
        )

    def _look_further(self, present: Mapping[int, Report]) -> None:
        if not self._looked_everywhere:
            self._candidates = None
            self._hands.find(self._generation, present, tuple(self._refused))
            return
        self._say(end=self._generation, save=None)
        self.stage = "over"
        self._hands.unrestorable("; ".join(self._refused.values()))

    # saving the same step

    def _can_agree(self, present: Mapping[int, Report]) -> bool:
        proposal = self.order.proposal
        settled = proposal is not None and proposal.number == self.order.settled
        ready = all(r.phase == UP and r.listens for r in present.values())
        return settled and ready and len(present) == self._world_size

    def _agree_what_to_save(self, present: Mapping[int, Report]) -> None:
        wanted = max((report.wants_save for report in present.values()), default=0)
        if wanted > self._saves_wanted:
            self._saves_wanted, self._saves_asked = wanted, self._saves_asked + 1
        if not self._can_agree(present):
            return
        if self._save_tries is not None:
            if self._save_is_agreed(present):
                self._save_tries, self._saves_asked = None, 0
        elif self._saves_asked:
            self._name_step(present)

    def _save_is_agreed(self, present: Mapping[int, Report]) -> bool:
        """Whether every rank will surely save it; names a later step when one has passed it already."""
        save = self.order.save
        if save is None or all(report.placed_word == save.number for report in present.values()):
            return True
        if any(report.passed_word == save.number for report in present.values()):
            if (self._save_tries or 0) >= SAVE_TRIES_MAX:
                return True
            self._name_step(present)
        return False

    def _name_step(self, present: Mapping[int, Report]) -> None:
        self._save_tries = 0 if self._save_tries is None else self._save_tries + 1
        self._saves += 1
        step_s = max((report.step_s for report in present.values() if report.step_s), default=None)
        furthest = max(report.step for report in present.values())
        step = furthest + lead_steps(step_s, self._save_tries)
        self._say(save=Save(number=self._saves, step=step, hold=self.stage == "leave"))

    # down

    def _down(self, present: Mapping[int, Report], now_s: float) -> None:
        everywhere = len(present) == self._world_size and all(
            report.heard >= self._down_since and report.phase == IDLE for report in present.values()
        )
        if not everywhere:
            return
        ends = self._ends(present)
        found = _failed(ends) + [
            Ended(rank, 0, Failure.from_dict(dict(hang)))
            for rank, hang in self._hangs.items()
            if rank in ends
        ]
        root = root_cause(found)
        end = ends[root.rank]
        bad = [Stretch(**one.stretch) for one in ends.values() if one.stretch is not None]
        if root.rank in self._hangs and end.how != FAILED:
            end = replace(end, failure=self._hangs[root.rank])
        following = Generation(self._generation.attempt, self._generation.restart + 1)
        decision = self._hands.decide(root.rank, end, following)
        if decision.action == "fail":
            self.stage = "over"
            self._hands.fail(root.rank, end, decision.reason)
            return
        if bad:
            self._say(rollback=Rollback(generation=following, **merged(bad)._asdict()))
            self._rolled_back = self.order.number
        self._not_before_s, self.stage = now_s + decision.delay_s, "gather"
        self._gather(present, now_s)

    # leave

    def _leave(self, present: Mapping[int, Report], now_s: float) -> None:
        if self.order.leave is not None:
            return
        reasons = [
            r.farewell.reason for r in present.values() if r.farewell is not None and r.farewell.reason
        ]
        save = self.order.save
        agreed = save is not None and all(r.placed_word == save.number for r in present.values())
        if agreed and save is not None:
            self._order_leave(save.step, now_s, reasons)
        elif now_s >= self._agree_until_s or not self._can_agree(present) or self._save_is_agreed(present):
            # Too late, or somebody does not listen, or so many steps were named that it is given up.
            self._order_leave(0, now_s, reasons)

    def _order_leave(self, step: int, now_s: float, reasons: Sequence[str]) -> None:
        left_s = max(0.0, (self._leave_until_s or now_s) - now_s)
        reason = reasons[0] if reasons else "the gang leaves"
        self._say(leave=Leave(step=step, left_s=round(left_s, 3), reason=reason))

    # finish

    def _finish(self, present: Mapping[int, Report], _now_s: float) -> None:
        others = [report for rank, report in present.items() if rank != 0]
        if len(others) == self._world_size - 1 and all(report.phase == OVER for report in others):
            self.stage = "over"
            self._hands.finish()


def _failed(ends: Mapping[int, End]) -> list[Ended]:
    return [Ended(rank, end.at_us, end.classified()) for rank, end in ends.items() if end.how == FAILED]
