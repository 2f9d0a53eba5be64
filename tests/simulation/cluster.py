"""Machines, gangs, agents and training processes, as far as a lifecycle can tell them from real.

Everything here goes on without the controller. What an agent reports is journalled on its machine first; the
network then delivers it late, twice, out of order, or (while nobody listens) not until it is sent again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from orch.model.events import (
    AgentUp,
    CheckpointCommitted,
    Event,
    ProcessExited,
    ProcessStarted,
    Progressed,
    Recovered,
    RestartDecided,
    Restored,
    WarmStarted,
    WorkerEnded,
)
from orch.model.generation import Generation
from orch_policies import restart as policy
from simulation.faults import poison

if TYPE_CHECKING:
    from simulation.world import World

STEP_MS = 100
CHECKPOINT_STEPS = 5
GUARD_KILL_MS = 40
SPAWN_MS = (50, 400)
HANG_LIMIT_MS = 1500
AWAY_RETRY_MS = 300
UPLOAD_MS = (20, 900)
LANDS_LATE_MS = 4000
"""An upload whose agent died may land this much later: beyond the fork of the generation that has followed."""


@dataclass
class Process:
    """A training process of one rank."""

    generation: Generation
    node: str
    alive: bool = True
    hung: bool = False


@dataclass
class Node:
    name: str
    slots: int
    alive: bool = True
    draining: bool = False
    memory: dict[tuple[str, int], tuple[Generation, int]] = field(default_factory=dict)
    """(job, rank) → newest READY snapshot."""
    journals: dict[tuple[str, int], list[Event]] = field(default_factory=dict)


@dataclass
class Gang:
    job: str
    attempt: int
    size: int
    nodes: list[str] = field(default_factory=list)
    """Rank → machine; empty while it is not granted."""


class Agent:
    """One rank's agent; that of rank 0 leads: it numbers the restarts and decides about them."""

    def __init__(
        self,
        world: World,
        job: str,
        rank: int,
        placed: int,
        node: Node,
        *,
        policy_document: Any,
        resumed: int | None,
    ) -> None:
        self.world, self.job, self.rank, self.node = world, job, rank, node
        self.placed = self.attempt = placed
        self.policy, self.resumed = policy_document, resumed or 0
        self.alive, self.up, self.outcome = True, False, ""
        self.process: Process | None = None
        self.restart, self.step, self.told_recovered = 0, 0, False
        self.stalled_ms = 0
        self.wedged = False
        self.journal = node.journals.setdefault((job, rank), [])
        backlog = list(self.journal)
        world.after(world.between(*SPAWN_MS), lambda: self._come_up(backlog))

    # --- what every agent does ---

    def tell(self, event: Event) -> None:
        """Written down, then sent."""
        self.journal.append(event)
        self.world.send(self, event)

    def _come_up(self, backlog: list[Event]) -> None:
        if not self.alive:
            return
        self.up = True
        for event in backlog:  # what predecessors on this machine could not deliver
            self.world.send(self, event)
        self.tell(AgentUp(attempt=self.placed, rank=self.rank, node=self.node.name))
        ends = [e for e in backlog if isinstance(e, WorkerEnded) and e.attempt >= self.resumed]
        done = [event for event in ends if event.outcome == "succeeded"]
        if done and self.rank == 0:  # finished, and killed before it could say so: nothing is run twice
            self.end("succeeded")
        elif self.rank == 0:
            self._gather(self.attempt)

    def die(self) -> None:
        """SIGKILL. The guard ends the process a little later; an upload that is under way may still land."""
        if self.alive:
            self.alive = False
            self.world.agent_died(self)
            process = self.process
            if process is not None:
                self.world.after(
                    self.world.between(0, GUARD_KILL_MS), lambda: self.world.end_process(process)
                )

    def adopt(self, attempt: int, policy_document: Any) -> None:
        if attempt <= self.attempt or not self.alive or self.outcome not in {"", "succeeded"}:
            return
        self.outcome = ""
        self.attempt, self.policy, self.restart = attempt, policy_document, 0
        self._end_own_process()
        if self.rank == 0 and self.up:
            self._gather(attempt)

    def end(self, outcome: str, reason: str = "") -> None:
        if self.alive and not self.outcome:
            self.outcome = outcome
            self._end_own_process()
            self.tell(WorkerEnded(attempt=self.placed, rank=self.rank, outcome=outcome, reason=reason))

    def stop(self, outcome: str) -> None:
        self.end(outcome)

    def _end_own_process(self) -> None:
        if self.process is not None:
            self.world.end_process(self.process)
            self.process = None

    # --- what the leader does ---

    def _gang(self) -> list[Agent] | None:
        """All agents of this attempt by rank, or None while one is missing."""
        gang = self.world.present(self.job)
        workers = self.world.workers[self.job]
        whole = len(gang) == workers and all(
            a.attempt == self.attempt and a.up and not a.outcome for a in gang
        )
        return gang if whole else None

    def _gather(self, attempt: int) -> None:
        """Rendezvous: waits until every rank is there and every older process is gone."""
        if not self.alive or self.outcome or self.attempt != attempt:
            return
        gang = self._gang()
        if gang is None or any(
            p.alive for p in self.world.processes_on(self.job, [a.node.name for a in gang])
        ):
            self.world.after(STEP_MS, lambda: self._gather(attempt))
            return
        self._start(Generation(self.attempt, self.restart + 1))

    def _start(self, generation: Generation) -> None:
        gang = self._gang()
        if gang is None or self.attempt != generation.attempt or not self.alive or self.outcome:
            return
        self.restart = generation.restart
        point, source = self.world.restore(self.job, [agent.node for agent in gang])
        storage = self.world.storages[self.job]
        if point is None and any(storage.takes(*saved) for saved in storage.manifests):
            self.end("blocked", "nothing of what was saved can be restored")
            return
        step = 0 if point is None else point[1]
        if not storage.begin(generation, step):
            self.end("stopped", "a newer generation exists")
            return
        storage.forked(generation, point)
        self.world.restored(self.job, generation, point)
        for agent in gang:
            agent.process = Process(generation, agent.node.name)
            self.world.start_process(self.job, agent.process)
            agent.tell(ProcessStarted(generation=generation, rank=agent.rank))
        self.step, self.told_recovered, self.stalled_ms = step, False, 0
        if point is None and self.world.chance(0.2):
            self.tell(WarmStarted(generation=generation, source="other-x1@7", loaded=3))
        if point is not None:
            self.tell(Restored(generation=generation, step=step, source=source))
        self.world.after(STEP_MS, lambda: self._train(generation))

    def _train(self, generation: Generation) -> None:
        """One step of the whole gang; what ended a process is seen here, as by `wait`."""
        if not self.alive or self.outcome or self.wedged or (self.attempt, self.restart) != generation:
            return
        gang = self._gang()
        if gang is None or any(agent.process is None for agent in gang):
            return  # the controller replaces who is missing, and raises the attempt
        dead = next((agent for agent in gang if agent.process and not agent.process.alive), None)
        code = self.world.flaws[self.job].crash(self.step)
        failure = None
        if dead is not None:
            failure = policy.Failure("process_exit", signal=9, step=self.step)
        elif any(agent.process.hung for agent in gang if agent.process):
            self.stalled_ms += STEP_MS
            if self.stalled_ms < HANG_LIMIT_MS:
                self.world.after(STEP_MS, lambda: self._train(generation))
                return
            failure = policy.Failure("hang", step=self.step, message="no step for too long")
        elif code:
            failure = policy.Failure("process_exit", exit_code=code, step=self.step)
        elif self.world.flaws[self.job].turns_bad(self.step + 1):
            poison(self.world, self.job, self.step + 1)
            failure = policy.Failure("bad_numbers", step=self.step + 1, message="loss is nan")
        if failure is None:
            self._stepped(generation)
        else:
            self.world.met.add(failure.kind)
            self._exited(dead or self, generation, failure)

    def _stepped(self, generation: Generation) -> None:
        self.step += 1
        if not self.told_recovered:
            self.told_recovered = True
            self.tell(Recovered(generation=generation, step=self.step))
        elif self.world.chance(0.2):
            self.tell(Progressed(generation=generation, step=self.step))
        total = self.world.steps[self.job]
        if self.step == 1 or self.step % CHECKPOINT_STEPS == 0 or self.step == total:
            self._save(generation, self.step)
        if self.step < total:
            self.world.after(STEP_MS, lambda: self._train(generation))
            return
        self.world.finished.add(self.job)
        for agent in reversed(self.world.present(self.job)):  # the leader last
            agent.end("succeeded")

    def _save(self, generation: Generation, step: int) -> None:
        for agent in self.world.present(self.job):
            agent.node.memory[self.job, agent.rank] = (generation, step)

        storage = self.world.storages[self.job]

        def uploaded() -> None:
            if storage.away and self.alive:
                self.world.after(AWAY_RETRY_MS, uploaded)
                return
            if self.alive:
                storage.commit(generation, step)
                self.tell(CheckpointCommitted(generation=generation, step=step))
                self._refund(step)
            elif self.world.chance(0.5):  # sent before it died; the storage takes its time with it
                self.world.after(
                    self.world.between(0, LANDS_LATE_MS), lambda: storage.commit(generation, step)
                )

        self.world.after(self.world.between(*UPLOAD_MS), uploaded)

    def _refund(self, step: int) -> None:
        charges, history = self._account()
        charges, history = policy.committed(charges, history, step)
        self.policy = {**self.policy, "charges": charges.to_dict(), "history": history.to_dict()}

    def _account(self) -> tuple[policy.Charges, policy.History]:
        return (
            policy.Charges.from_dict(self.policy["charges"]),
            policy.History.from_dict(self.policy["history"]),
        )

    def _exited(self, agent: Agent, generation: Generation, failure: policy.Failure) -> None:
        """Restart in place, by the policy and the budget that came with the attempt. Journalled first."""
        signal = None if failure.exit_code else 9  # what hangs or has gone bad is killed by its agent
        agent.tell(
            ProcessExited(
                generation=generation,
                rank=agent.rank,
                signal=signal,
                code=failure.exit_code,
                step=self.step,
                what=policy.describe(failure),
                detect_s=self.stalled_ms / 1000,
            )
        )
        for other in self.world.present(self.job):
            other._end_own_process()
        charges, history = self._account()
        budgets = policy.Budgets.from_dict(self.policy["budgets"])
        decision = policy.decide(budgets, charges, history, failure, self.policy["seed"])
        charges, history = policy.record(charges, history, failure, decision)
        self.policy = {**self.policy, "charges": charges.to_dict(), "history": history.to_dict()}
        if decision.action == "fail":
            self.end("failed", decision.reason)
            return
        if decision.charge_to is None:
            self.world.met.add("asked")
        following = Generation(generation.attempt, generation.restart + 1)
        self.tell(
            RestartDecided(
                generation=following,
                reason=decision.reason,
                charge_to=decision.charge_to,
                delay_s=decision.delay_s,
                step=self.step,
                failure=failure.to_dict(),
            )
        )
        self.restart = following.restart
        self.world.after(decision.delay_s * 1000 + STEP_MS, lambda: self._start(following))
