"""Seeded schedules for the real members and the real leader of a gang: workers, keepers, clock and network are played.

Messages are lost, doubled and late; processes fail; ranks refuse what they are to restore; agents die and are
replaced; somebody is told to leave. What must hold is looked at after every turn.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from orch.model.generation import Generation
from orch_policies.classification import Failure
from orch_policies.restart import Decision
from orch_workers.gang.leader import Candidate, Leader
from orch_workers.gang.member import Member, first_report
from orch_workers.gang.words import (
    FAILED,
    IDLE,
    KILLED,
    OVER,
    SUCCEEDED,
    End,
    Leave,
    Place,
    Point,
    Proposal,
    Report,
    Rollback,
    Save,
    Start,
)

TURN_S = 0.02
STEP_S = 0.05
FAULTS_UNTIL_S = 8.0
LIMIT_S = 120.0
STEPS = 120
CHAIN = {"generation": "000001.000001", "parent": None, "restored_step": 0, "ancestors": []}


class PlayedTime:
    """In the place of the module `time`."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s

    def sleep(self, _seconds_s: float) -> None:
        raise AssertionError("a fault was met in the gang's talk")


class Rank:
    """Worker, keeper and process of one rank; for rank 0 also what the leader has done."""

    def __init__(self, world: World, rank: int, attempt: int, placed: int) -> None:
        self.world, self.rank, self.attempt = world, rank, attempt
        place = Place(node=f"node-{rank % 2}", address="127.0.0.1")
        self.member = Member(first_report(attempt, placed, rank, place), self, self._say, world.size)
        self.leader: Leader | None = None
        if rank == 0:
            self.leader = Leader(attempt, placed, world.size, self, lambda taken: taken % 1000 + 20_000)
            self.member.lead(self.leader)
        self.dead = self.over = self.stopping = False
        self.alive: Generation | None = None
        self.generation = Generation(attempt, 0)
        self.settled, self.step, self.word, self.stop_word, self.hold = False, 0, 0, False, False
        self.offered: Point | None = None
        self.wall: dict[str, Any] = {}
        self.soon(lambda: None if self.dead else self.member.ready(self))

    def soon(self, act: Callable[[], None]) -> None:
        """In the worker's loop, some time from now and in order."""
        self.world.later(self, act)

    def _say(self, rank: int, message: Mapping[str, Any]) -> None:
        self.world.send(rank, message)

    # member.Rank

    def look(self) -> dict[str, Any]:
        return {
            "listens": self.alive is not None and self.settled,
            "step": self.step,
            "step_s": STEP_S,
            "waits": False,
        }

    def begin(self, start: Start) -> None:
        def act() -> None:
            if self.stopping or self.alive or not self.member.begins(start.generation):
                return
            self.alive = self.generation = start.generation
            self.settled, self.step, self.word, self.stop_word, self.hold = False, 0, 0, False, False
            self.world.check()

        self.soon(act)

    def end(self, generation: Generation) -> None:
        self.soon(lambda: self.ended(KILLED) if self.alive and self.alive <= generation else None)

    def save_at(self, save: Save) -> None:
        def act() -> None:
            self.word, self.hold = save.step, save.hold
            sure = self.alive is not None and self.settled and self.step < save.step
            self.member.tell(**{"placed_word" if sure else "passed_word": save.number})

        self.soon(act)

    def roll_back(self, rollback: Rollback) -> None:
        raise AssertionError("no loss was bad")

    def leave(self, leave: Leave) -> None:
        def act() -> None:
            self.stopping = True
            if self.alive is None:
                self.finished("left")
            elif leave.step and self.settled:
                self.word, self.stop_word, self.hold = leave.step, True, False
                self.world.left_after.add(leave.step)
                if self.step >= leave.step:
                    self.ended(FAILED)  # it was held there
                # It may wait for one that has died; its agent ends it when the time is up.
                self.world.after(leave.left_s, lambda: self.ended(FAILED) if self.alive else None)
            else:
                self.ended(FAILED)

        self.soon(act)

    def finish(self) -> None:
        self.soon(lambda: self.finished("succeeded"))

    def hold_on(self, *, waits: bool) -> None:
        assert not waits

    # member.Holdings

    def holds(self) -> tuple[Point, ...]:
        return tuple(Point(generation=g, step=s) for g, s in sorted(self.world.memory[self.rank])[-2:])

    def written(self) -> tuple[Point, ...]:
        return ()

    def lineage(self) -> dict[str, Any] | None:
        return None

    @property
    def newest_commit(self) -> Point | None:
        return None

    def heard(self, report: Report) -> None: ...
    def committed(self, point: Point) -> None: ...

    def propose(self, proposal: Proposal, answer: Callable[[str], None]) -> None:
        refuses = self.world.faults and self.world.random.random() < 0.1 and proposal.point is not None

        def act() -> None:
            self.offered = proposal.point
            answer("damaged" if refuses else "")

        self.soon(act)

    def settle(self, generation: Generation, nothing: bool) -> None:
        if self.alive == generation and not self.settled:
            points = {other.offered for other in self.world.ranks if not other.dead}
            assert len(points) == 1, f"ranks begin with different states: {points}"
            self.settled = True
            self.step = 0 if self.offered is None else self.offered.step

    # leader.Hands

    def find(self, generation: Generation, reports: Mapping[int, Report], refused: Sequence[Point]) -> None:
        common = set.intersection(*(set(report.holds) for report in reports.values())) - set(refused)
        found = [Candidate(point, CHAIN) for point in sorted(common, key=lambda p: p.step, reverse=True)]
        assert self.leader is not None
        leader = self.leader
        self.soon(lambda: leader.found(generation, [*found, Candidate(None, CHAIN)], everywhere=True))

    def decide(self, rank: int, end: End, following: Generation) -> Decision:
        assert not any(other.alive for other in self.world.ranks), "decided while a process lives"
        self.world.decided.append(following)
        delay_s = self.world.random.choice((0.0, 0.0, 0.3))
        return Decision("restart", "failures", delay_s, "test")

    def fail(self, rank: int, end: End, reason: str) -> None:
        raise AssertionError("nothing was to fail")

    def unrestorable(self, why: str) -> None:
        raise AssertionError(f"there always is a way to begin: {why}")

    # the process

    def turn(self) -> None:
        if self.alive is None or not self.settled:
            return
        if self.step >= STEPS:
            self.ended(SUCCEEDED)  # what was restored was the end
            return
        if not all(other.joins(self.step + 1, self.alive) for other in self.world.ranks):
            return  # it waits in a collective
        if self.hold and self.step >= self.word:
            return  # it waits for the next word
        self.step += 1
        if self.step % 10 == 0 or self.step == self.word:
            self.world.memory[self.rank].add((self.alive, self.step))
        if self.stop_word and self.step >= self.word:
            self.ended(FAILED)
        elif self.step >= STEPS:
            self.ended(SUCCEEDED)

    def joins(self, step: int, generation: Generation) -> bool:
        """Whether this rank's process is at that step's collective, or has been."""
        if self.generation != generation or not self.settled:
            return False
        return self.step >= (step - 1 if self.alive else step)

    def ended(self, how: str) -> None:
        generation, self.alive = self.alive, None
        assert generation is not None
        if self.stopping:
            self.finished("left")
            return
        failure = Failure("process_exit", exit_code=1).to_dict() if how == FAILED else None
        end = End(generation=generation, how=how, failure=failure, step=self.step, code=1)
        self.member.tell(phase=IDLE, end=end, hang=None)

    def finished(self, outcome: str) -> None:
        if not self.over:
            self.over = True
            self.world.outcomes[self.rank] = (outcome, self.step)
            self.member.tell(phase=OVER, outcome=outcome)


class World:
    def __init__(self, seed: int, clock: PlayedTime) -> None:
        self.random, self.clock = random.Random(seed), clock
        self.size = self.random.choice((2, 2, 3, 4))
        self.loss = self.random.choice((0.0, 0.1, 0.4))
        self.faults = True
        self.memory: list[set[tuple[Generation, int]]] = [set() for _ in range(self.size)]
        self.decided: list[Generation] = []
        self.outcomes: dict[int, tuple[str, int]] = {}
        self.left_after: set[int] = set()
        self.disturbed = False
        """Something was done to a rank while they were leaving."""
        self.attempt = 1
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._number = 0
        self._free_s: dict[int, float] = {}
        self.ranks: list[Rank] = []
        self.ranks = [Rank(self, rank, 1, 1) for rank in range(self.size)]
        self.leaving = self.random.random() < 0.4

    def later(self, rank: Rank, act: Callable[[], None]) -> None:
        at_s = max(self._free_s.get(id(rank), 0.0), self.clock.now_s + self.random.uniform(0, 0.06))
        self._free_s[id(rank)] = at_s
        self._put(at_s, lambda: None if rank.dead else act())

    def after(self, delay_s: float, act: Callable[[], None]) -> None:
        self._put(self.clock.now_s + delay_s, act)

    def send(self, rank: int, message: Mapping[str, Any]) -> None:
        for _ in range(self.random.choice((1, 1, 1, 2))):
            if self.random.random() >= self.loss:
                late_s = self.random.choice((0.0, 0.0, 0.01, 0.2))
                self._put(self.clock.now_s + late_s, lambda: self.ranks[rank].member.heard(message))

    def _put(self, at_s: float, act: Callable[[], None]) -> None:
        self._number += 1
        self._queue.append((at_s, self._number, act))

    def check(self) -> None:
        generations = {rank.alive for rank in self.ranks if rank.alive is not None}
        assert len(generations) <= 1, f"two generations live at once: {generations}"

    def run(self) -> None:
        """To the end; AssertionError when something does not hold."""
        began_s = self.clock.now_s
        while len(self.outcomes) < self.size:
            self.clock.now_s += TURN_S
            assert self.clock.now_s - began_s < LIMIT_S, (
                f"it never ends: {[r.member._report for r in self.ranks]}"
            )
            self.faults = self.clock.now_s - began_s < FAULTS_UNTIL_S
            due = sorted(entry for entry in self._queue if entry[0] <= self.clock.now_s)
            self._queue = [entry for entry in self._queue if entry[0] > self.clock.now_s]
            for _, _, act in due:
                act()
            for rank in self.random.sample(self.ranks, len(self.ranks)):
                rank.turn()
                rank.member._once(poked=self.random.random() < 0.5)
            self.check()
            if self.faults and self.random.random() < 0.01:
                self._fault()
        self._check_outcomes()

    def _fault(self) -> None:
        rank = self.random.choice(self.ranks)
        what = self.random.random()
        self.disturbed |= any(other.stopping or other.over for other in self.ranks)
        if what < 0.6 and rank.alive:
            rank.ended(FAILED)
        elif what < 0.8 and not any(other.stopping or other.over for other in self.ranks):
            self._replace(rank)
        elif self.leaving and rank.alive and not rank.stopping:
            rank.stopping = True
            rank.member.farewell("left", "the machine goes", 20.0)

    def _replace(self, lost: Rank) -> None:
        """Its agent dies, with the memory of its machine at times; the controller raises the attempt."""
        self.attempt += 1
        if self.random.random() < 0.5:
            self.memory[lost.rank].clear()
        for rank in self.ranks:
            rank.dead, rank.alive = True, None
        self.ranks = [
            Rank(self, old.rank, self.attempt, self.attempt if old is lost else old.member._report.placed)
            for old in self.ranks
        ]

    def _check_outcomes(self) -> None:
        kinds = {outcome for outcome, _ in self.outcomes.values()}
        assert len(kinds) == 1, f"not all ended alike: {self.outcomes}"
        if kinds == {"succeeded"}:
            assert {step for _, step in self.outcomes.values()} == {STEPS}, f"{self.outcomes}"
        if kinds == {"left"} and self.left_after - {0} and not self.disturbed:
            steps = {step for _, step in self.outcomes.values()}
            assert steps == {min(step, STEPS) for step in self.left_after}, (
                f"told to leave after {self.left_after}, and left after {steps}"
            )
        assert len(self.decided) == len(set(self.decided)), "a generation was decided twice"
