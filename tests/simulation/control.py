"""The controller and its store: written down, then acted on. Loses everything but the store when it dies."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from orch.control.lifecycle import advance, begin, still_wanted
from orch.control.lifecycle_invariants import validate
from orch.model import commands as cmd
from orch.model.commands import Command, command_from_dict, command_to_dict
from orch.model.events import (
    Adopted,
    AgentLost,
    Closed,
    Event,
    GangGranted,
    GangRemoved,
    RestartDecided,
    StopOverdue,
    Submitted,
    TurnCame,
    TurnLost,
    event_from_dict,
    event_to_dict,
)
from orch.model.states import JobState
from orch_policies.queue import Waiting, order

if TYPE_CHECKING:
    from collections.abc import Callable

    from simulation.world import World

TICK_MS = 150


@dataclass
class Store:
    """What survives: the jobs, and the commands that are not known to be done, in their order."""

    jobs: dict[str, JobState] = field(default_factory=dict)
    outbox: list[tuple[int, str, dict[str, Any]]] = field(default_factory=list)
    next_seq: int = 1
    decided: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    """Decisions that ought to have been charged, counted beside the lifecycle and not by it."""
    restarts: dict[str, set[str]] = field(default_factory=dict)


class Controller:
    def __init__(self, world: World) -> None:
        self.world, self.store = world, Store()
        self.up, self.life = True, 0
        self._busy: set[str] = set()
        self._tick(0)

    def submit(self, event: Submitted) -> None:
        job, commands = begin(event, self.world.clock.now_us)
        validate(job)
        assert not commands
        self.store.jobs[event.job] = job

    def tell(self, name: str, event: Event) -> None:
        """One transaction: the new state and its commands. Nothing happens while the controller is down."""
        if not self.up:
            return
        before = self.store.jobs[name]
        event = event_from_dict(event_to_dict(event))
        job, commands = advance(before, event, self.world.clock.now_us + self.world.clock_error_us())
        validate(job)
        self.store.jobs[name] = job
        self._count(before, job, event, commands)
        for command in commands:
            self.store.outbox.append((self.store.next_seq, name, command_to_dict(command)))
            self.store.next_seq += 1
        self.world.check()

    def _count(self, before: JobState, job: JobState, event: Event, commands: list[Command]) -> None:
        name = job.job
        if isinstance(event, RestartDecided):
            failure = event.failure or {}
            assert failure.get("exit_code") not in job.budgets.get("stop_codes", ()), f"{name}: to be stopped"
        if isinstance(event, RestartDecided) and event.charge_to:
            seen = self.store.restarts.setdefault(name, set())
            if str(event.generation) not in seen:
                seen.add(str(event.generation))
                self.store.decided[name]["hangs" if failure.get("kind") == "hang" else "failures"] += 1
        replaced = job.attempt > before.attempt and any(isinstance(c, cmd.StartAgents) for c in commands)
        requeued = before.gang_granted and job.state.value == "QUEUED"
        free = ("whether one was", "charged already")
        if (replaced or requeued) and not any(words in job.story[-1].decision for words in free):
            self.store.decided[name][_payer(event, before)] += 1

    # --- death and return ---

    def die(self) -> None:
        self.up = False
        self.life += 1
        self._busy.clear()
        # A store keeps JSON: what does not survive that is lost here, and found.
        self.store.jobs = {
            name: JobState.from_dict(json.loads(json.dumps(job.to_dict())))
            for name, job in self.store.jobs.items()
        }

    def come_back(self) -> None:
        self.up = True
        for name in self.store.jobs:
            found = {agent.rank: agent.placed for agent in self.world.agents(name) if agent.alive}
            gangs = [gang.attempt for gang in self.world.gangs if gang.job == name]
            job = self.store.jobs[name]
            gang = job.gang if job.gang in gangs else (gangs[0] if gangs else None)
            self.tell(name, Adopted(found=found, gang=gang))
        for agent in self.world.all_agents:
            if agent.alive:
                for event in list(agent.journal):  # told again from the beginning
                    self.world.send(agent, event)
        for gang in self.world.gangs:
            if gang.nodes:
                self.tell(gang.job, GangGranted(attempt=gang.attempt))
        self._tick(self.life)

    def _tick(self, life: int) -> None:
        if life != self.life or not self.up:
            return
        self._schedule()
        self._look()
        self.world.after(TICK_MS, lambda: self._tick(life))

    def _schedule(self) -> None:
        now_us = self.world.clock.now_us
        jobs = {name: job for name, job in self.store.jobs.items() if job.placeable(now_us)}
        turns = order([Waiting(name, 0, job.submitted_us) for name, job in jobs.items()])
        if turns:
            self.tell(turns[0].job_id, TurnCame())
        for name, job in self.store.jobs.items():
            if job.gang is not None and not job.gang_granted and self.world.chance(0.02):
                self.tell(name, TurnLost(reason="another job goes first"))

    # --- commands ---

    def _look(self) -> None:
        blocked = set(self._busy)
        for row in list(self.store.outbox):
            seq, name, document = row
            if name in blocked:
                continue
            command = command_from_dict(document)
            if not still_wanted(self.store.jobs[name], command):
                self._done(seq)
                continue
            if (getattr(command, "not_before_us", None) or 0) > self.world.clock.now_us:
                continue
            blocked.add(name)
            self._busy.add(name)
            life = self.life
            self._carry_out(
                name, command, lambda seq=seq, name=name, life=life: self._finish(seq, name, life)
            )

    def _finish(self, seq: int, name: str, life: int) -> None:
        """Marks the command as done a little after it was: in between a crash makes it be repeated."""

        def done() -> None:
            if life == self.life:
                self._busy.discard(name)
                self._done(seq)

        self.world.after(self.world.between(1, 60), done)

    def _done(self, seq: int) -> None:
        self.store.outbox = [row for row in self.store.outbox if row[0] != seq]

    def _carry_out(self, name: str, command: Command, finish: Callable[[], None]) -> None:
        world, life = self.world, self.life

        def tell(event: Event) -> None:
            if life == self.life:
                self.tell(name, event)

        match command:
            case cmd.RequestGang():
                world.request_gang(name, command.attempt)
            case cmd.StartAgents():
                if not world.gang_ready(name, command.gang_attempt):  # Ray is placing it anew: tried again
                    world.after(TICK_MS, lambda: self._busy.discard(name))
                    return
                for rank in command.ranks:
                    if not world.start_agent(name, command, rank):
                        lost = AgentLost(
                            attempt=command.attempt, rank=rank, evidence="no gang", node_lost=True
                        )
                        tell(lost)
            case cmd.RaiseAttempt():
                for agent in world.present(name):
                    if agent.rank in command.ranks:
                        agent.adopt(command.attempt, command.policy)
            case cmd.StopAgents():
                world.stop_agents(name)
                wait_ms = max(0, command.deadline_us - world.clock.now_us) / 1000
                world.after(wait_ms, lambda: tell(StopOverdue(attempt=command.attempt)))
            case cmd.KillAgents():
                for agent in world.agents(name):
                    if command.strays.get(agent.rank) == agent.placed:
                        agent.die()
            case cmd.RemoveGang():
                world.end_agents(name, command.attempt)
                world.when_gone(name, lambda: (tell(GangRemoved(attempt=command.attempt)), finish()))
                return
            case cmd.CloseJob():
                world.end_agents(name, None)
                if command.sweep:
                    world.sweep(name)
                closed = Closed(attempt=command.attempt, swept=command.sweep)
                world.when_gone(name, lambda: (tell(closed), finish()))
                return
        finish()


def _payer(event: Event, before: JobState) -> str:
    """Who is to pay for a placing, by the table of DESIGN section 7."""
    if isinstance(event, AgentLost) and any(a.outcome in {"left", "stopped"} for a in before.agents.values()):
        return "preemptions"  # the gang leaves on notice; how the rest of it ends makes no difference
    if isinstance(event, AgentLost):
        told = event.preempted or before.agents[event.rank].notice
        return "preemptions" if event.node_lost or told else "failures"
    if isinstance(event, Adopted):
        return "either"  # an agent that is not there, or its gang
    return "preemptions"
