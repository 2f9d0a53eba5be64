"""One seeded schedule: a cluster, a controller, jobs, and everything that goes wrong with them."""

from __future__ import annotations

import random
from functools import partial
from typing import TYPE_CHECKING, Any

from orch.control.lifecycle import story_lines
from orch.control.lifecycle_common import charges
from orch.model.events import (
    AgentLost,
    BlockedBecause,
    CancelRequested,
    Event,
    GangGranted,
    PreemptionNoticed,
    PreemptRequested,
    ResumeRequested,
    Submitted,
    Unblocked,
)
from orch.model.states import State
from orch_policies.restart import BUDGETS
from simulation.clock import Clock
from simulation.cluster import Agent, Gang, Node, Process
from simulation.control import Controller
from simulation.faults import (
    RESTART_CODE,
    REVIVE_MS,
    STOP_CODE,
    Flaws,
    damage,
    drain_node,
    hang,
    kill_node,
    storage_away,
)
from simulation.storage import Storage

if TYPE_CHECKING:
    from collections.abc import Callable

    from orch.model.commands import StartAgents
    from orch.model.generation import Generation

FAULTS_UNTIL_MS = 8_000
GONE_POLL_MS = 25


class World:
    def __init__(self, seed: int) -> None:
        self.seed, self.random, self.clock = seed, random.Random(seed), Clock()
        self.nodes = [Node(f"node-{number}", slots=2) for number in range(self.random.choice((1, 3)))]
        self.gangs: list[Gang] = []
        self.all_agents: list[Agent] = []
        self.running: dict[str, list[Process]] = {}
        self.storages: dict[str, Storage] = {}
        self.workers: dict[str, int] = {}
        self.steps: dict[str, int] = {}
        self.finished: set[str] = set()
        self.cancelled: set[str] = set()
        self.resumed: set[str] = set()
        self.met: set[str] = set()
        """Kinds of failure that this schedule has seen."""
        self.flaws: dict[str, Flaws] = {}
        self.network = self.random.choice((0.0, 0.1, 0.3))
        """Chance that a message is delayed a lot, sent twice, or lost until it is sent again."""
        self.controller = Controller(self)
        for number in range(self.random.choice((1, 1, 2, 3))):
            self._submit(f"job-{number}")
        for _ in range(self.random.randrange(8)):
            self.after(self.between(0, FAULTS_UNTIL_MS), self.random.choice(self._faults()))

    # --- randomness and time ---

    def after(self, delay_ms: float, action: Callable[[], None]) -> None:
        self.clock.after(delay_ms, action)

    def between(self, low_ms: float, high_ms: float) -> float:
        return self.random.uniform(low_ms, high_ms)

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability

    def clock_error_us(self) -> int:
        """The wall clock that the controller reads is set back now and then."""
        return -5_000_000 if self.chance(0.01) else 0

    # --- jobs ---

    def _submit(self, name: str) -> None:
        self.workers[name] = self.random.choice((1, 1, 2)) if len(self.nodes) > 1 else 1
        self.steps[name] = self.random.randrange(5, 30)
        self.storages[name] = Storage()
        self.flaws[name] = Flaws(self, self.steps[name])
        limits: dict[str, Any] = {"max_failures": self.random.choice((1, 3, None))}
        if self.chance(0.2):
            limits["max_preemptions"] = 1
        limits |= {"stop_codes": [STOP_CODE], "restart_codes": [RESTART_CODE]}
        limits["on_nan"] = self.random.choice(("stop", "rollback"))
        self.controller.submit(
            Submitted(
                job=name,
                workers=self.workers[name],
                seed=self.seed,
                grace_s=0.5,
                budgets={"backoff_initial_s": 0.1, "backoff_max_s": 1.0, **limits},
            )
        )

    # --- faults ---

    def _faults(self) -> list[Callable[[], None]]:
        return [
            self._kill_process,
            self._kill_process,
            self._kill_agent,
            self._kill_agent,
            self._kill_controller,
            self._kill_controller,
            self._kill_cluster,
            self._leave,
            self._notice,
            self._preempt,
            *(partial(fault, self) for fault in (drain_node, kill_node, hang, storage_away, damage)),
            self._cancel,
            self._block,
            self._resume,
            self._resume,
        ]

    def some_job(self) -> str:
        return self.random.choice(sorted(self.storages))

    def _kill_process(self) -> None:
        alive = [process for processes in self.running.values() for process in processes if process.alive]
        if alive:
            self.end_process(self.random.choice(alive))

    def _kill_agent(self) -> None:
        alive = [agent for agent in self.all_agents if agent.alive]
        if alive:
            self.random.choice(alive).die()

    def _kill_controller(self) -> None:
        if self.controller.up:
            self.controller.die()
            self.after(self.between(50, 2000), self._revive_controller)

    def _revive_controller(self) -> None:
        if not self.controller.up:
            self.controller.come_back()

    def _kill_cluster(self) -> None:
        self._kill_controller()
        for node in self.nodes:
            if node.alive:
                self.end_node(node)
                self.after(REVIVE_MS, lambda node=node: self.revive_node(node))
        self.gangs.clear()

    def end_node(self, node: Node) -> None:
        node.alive = False
        node.memory.clear()
        node.journals.clear()
        for process in [p for processes in self.running.values() for p in processes if p.node == node.name]:
            self.end_process(process)
        for agent in self.all_agents:
            if agent.node is node:
                agent.die()

    def revive_node(self, node: Node) -> None:
        node.alive, node.draining = True, False
        self._grant()

    def _leave(self) -> None:
        """A preemption notice to a whole gang."""
        job = self.some_job()
        for agent in self.present(job):
            agent.stop("left")

    def _notice(self) -> None:
        """One machine of a gang is said to go away, and sometimes does before its worker has left."""
        gang = self.present(self.some_job())
        agents = [agent for agent in gang if agent.up and not agent.outcome]
        if not agents:
            return
        agent = self.random.choice(agents)
        agent.tell(
            PreemptionNoticed(
                attempt=agent.placed, rank=agent.rank, source="test", reason="goes", node_id=agent.node.name
            )
        )
        self.after(self.between(0, 400), agent.die if self.chance(0.3) else lambda: agent.stop("left"))

    def _preempt(self) -> None:
        job = self.some_job()
        if self.controller.up:
            self.controller.tell(job, PreemptRequested(grace_s=self.between(0, 1)))

    def _cancel(self) -> None:
        job = self.some_job()
        if self.controller.up:
            self.cancelled.add(job)
            self.controller.tell(job, CancelRequested(now=self.chance(0.3)))

    def _resume(self) -> None:
        """Whatever the job does at the moment, but for ending: that is to be waited for, and the API says so."""
        name = self.some_job()
        job = self.controller.store.jobs[name]
        if not self.controller.up or job.state is State.STOPPING:
            return
        self.resumed.add(name)
        self.flaws[name].mended()
        points = sorted(self.storages[name].whole())
        if not points or self.chance(0.5):
            self.controller.tell(name, ResumeRequested())
            return
        generation, step = self.random.choice(points)
        budgets = {**job.budgets, "max_failures": 3}
        self.controller.tell(
            name, ResumeRequested(at_step=step, at_generation=generation, budgets=budgets, grace_s=0.5)
        )

    def _block(self) -> None:
        job = self.some_job()
        if self.controller.up:
            self.controller.tell(job, BlockedBecause(reason="set its secrets again"))

    # --- the network ---

    def send(self, agent: Agent, event: Event) -> None:
        """Delivers in order and soon, or, as bad as this network is, late, twice, or after a second try."""
        delay_ms = 5.0
        if self.chance(self.network):
            delay_ms += self.between(0, 1500)
        if self.chance(self.network / 2):
            self.after(delay_ms + self.between(0, 1500), lambda: self.controller.tell(agent.job, event))
        if self.chance(self.network / 2):
            delay_ms += 1000
            self.after(delay_ms, lambda: agent.alive and self.controller.tell(agent.job, event))
            return
        self.after(delay_ms, lambda: self.controller.tell(agent.job, event))

    def agent_died(self, agent: Agent) -> None:
        evidence = f"ActorDiedError: killed at {self.clock.now_us}"
        lost = AgentLost(
            attempt=agent.placed,
            rank=agent.rank,
            evidence=evidence,
            node_lost=not agent.node.alive,
            preempted=agent.node.draining,
            node_state="draining" if agent.node.draining else "",
        )
        self.met.add("preempted" if lost.preempted else "node_lost" if lost.node_lost else "agent_lost")
        self.after(self.between(5, 60), lambda: self.controller.tell(agent.job, lost))

    # --- gangs and agents ---

    def request_gang(self, job: str, attempt: int) -> None:
        if not any((gang.job, gang.attempt) == (job, attempt) for gang in self.gangs):
            self.gangs.append(Gang(job, attempt, self.workers[job]))
        self.after(self.between(1, 200), self._grant)

    def _grant(self) -> None:
        used = [name for gang in self.gangs for name in gang.nodes]
        for gang in self.gangs:
            free = [
                node.name
                for node in self.nodes
                if node.alive
                for _ in range(node.slots - used.count(node.name))
            ]
            if not gang.nodes and len(free) >= gang.size:
                gang.nodes = free[: gang.size]
                used += gang.nodes
                self._tell_granted(gang)

    def _tell_granted(self, gang: Gang) -> None:
        self.after(
            self.between(1, 300), lambda: self.controller.tell(gang.job, GangGranted(attempt=gang.attempt))
        )

    def gang_ready(self, job: str, attempt: int) -> bool:
        """False while Ray looks for new places for it; a gang that is gone is ready to be found gone."""
        return all(gang.nodes for gang in self.gangs if (gang.job, gang.attempt) == (job, attempt))

    def start_agent(self, job: str, command: StartAgents, rank: int) -> bool:
        """As Ray does by name: one that lives is left alone. False: the gang has no place for it."""
        gang = next((g for g in self.gangs if (g.job, g.attempt) == (job, command.gang_attempt)), None)
        if gang is None or not gang.nodes:
            return False
        if command.branch is not None:
            self.storages[job].branch(command.branch)
        if not any(a.alive and (a.rank, a.placed) == (rank, command.attempt) for a in self.agents(job)):
            node = next(node for node in self.nodes if node.name == gang.nodes[rank])
            if not node.alive:
                return False
            self.all_agents.append(
                Agent(
                    self,
                    job,
                    rank,
                    command.attempt,
                    node,
                    policy_document=command.policy,
                    resumed=command.resumed,
                )
            )
        return True

    def agents(self, job: str) -> list[Agent]:
        return [agent for agent in self.all_agents if agent.job == job]

    def present(self, job: str) -> list[Agent]:
        """Its living agents by rank."""
        return sorted((a for a in self.agents(job) if a.alive), key=lambda agent: agent.rank)

    def stop_agents(self, job: str) -> None:
        for agent in self.present(job):
            if self.chance(0.9):
                self.after(self.between(10, 600), lambda agent=agent: agent.stop("stopped"))
            else:
                agent.wedged = True  # it does nothing any more, and StopOverdue ends it

    def end_agents(self, job: str, gang_attempt: int | None) -> None:
        """`ray.kill` of all, and the gang (None: every gang) removed."""
        for agent in self.agents(job):
            agent.die()
        self.gangs = [g for g in self.gangs if g.job != job or gang_attempt not in {None, g.attempt}]
        self.after(1, self._grant)

    def when_gone(self, job: str, then: Callable[[], object]) -> None:
        if any(process.alive for process in self.running.get(job, [])):
            self.after(GONE_POLL_MS, lambda: self.when_gone(job, then))
        else:
            then()

    def sweep(self, job: str) -> None:
        for node in self.nodes:
            for rank in range(self.workers[job]):
                node.memory.pop((job, rank), None)
                node.journals.pop((job, rank), None)

    # --- processes and restores ---

    def start_process(self, job: str, process: Process) -> None:
        self.running.setdefault(job, []).append(process)
        self.check()

    def end_process(self, process: Process) -> None:
        process.alive = False
        for processes in self.running.values():
            if process in processes:
                processes.remove(process)

    def processes_on(self, job: str, nodes: list[str]) -> list[Process]:
        return [process for process in self.running.get(job, []) if process.node in nodes]

    def restore(self, job: str, nodes: list[Node]) -> tuple[tuple[Generation, int] | None, str]:
        """The newest restore point, memory before storage at equal step."""
        storage = self.storages[job]
        stored = next(iter(storage.restore_points()), None)
        snapshots = {node.memory.get((job, rank)) for rank, node in enumerate(nodes)}
        kept = snapshots.pop() if len(snapshots) == 1 else None
        if kept is not None and storage.takes(*kept) and (stored is None or kept[1] >= stored[1]):
            return kept, "memory"
        return stored, "storage"

    def restored(self, job: str, generation: Generation, point: tuple[Generation, int] | None) -> None:
        """Called right after the new generation has begun: it has just forked where it restored."""
        storage = self.storages[job]
        step = 0 if point is None else point[1]
        assert step >= storage.best_on_chain, f"{job}: a checkpoint on the chain was lost"
        assert point is None or storage.admits(*point), f"{job}: restored from off the chain"
        branch = self.controller.store.jobs[job].branch
        if branch is not None and point is not None and generation.attempt >= branch.attempt:
            of_branch = point[0].attempt >= branch.attempt or step <= branch.step
            assert of_branch, f"{job}: restored {point} instead of step {branch.step}, which was asked for"

    # --- what must hold ---

    def check(self) -> None:
        for name, job in self.controller.store.jobs.items():
            generations = {process.generation for process in self.running.get(name, [])}
            assert len(generations) <= 1, f"{name}: generations {sorted(map(str, generations))} live together"
            processes = self.running.get(name, [])
            assert len(processes) <= self.workers[name], f"{name}: more processes than ranks"
            spent = charges(job)
            booked = spent.failures + spent.hangs + spent.preemptions + spent.given_back
            decided = self.controller.store.decided[name]
            if name not in self.resumed:
                assert booked == decided.total(), f"{name}: {booked} booked, {decided} decided"
                for budget in BUDGETS:
                    most = decided[budget] + decided["either"]
                    assert spent.spent(budget) <= most, f"{name}: {budget} pay for others: {spent}, {decided}"
            if job.ended:
                self._check_over(name)

    def _check_over(self, name: str) -> None:
        assert not self.present(name), f"{name}: over, and an agent lives"
        assert not self.running.get(name), f"{name}: over, and a training process lives"
        assert not [gang for gang in self.gangs if gang.job == name], f"{name}: over, and a gang is held"
        snapshots = [key for node in self.nodes for key in node.memory if key[0] == name]
        assert not snapshots, f"{name}: snapshots left"

    def run(self) -> None:
        """To the end of every job; AssertionError with seed and stories if something does not hold."""
        try:
            self.clock.run(self._all_over)
            self._check_ends()
        except Exception as error:
            stories = [
                line
                for job in self.controller.store.jobs.values()
                for line in ("", job.job, *story_lines(job))
            ]
            raise AssertionError(f"seed {self.seed}: {error}\n" + "\n".join(stories)) from error

    def _all_over(self) -> bool:
        jobs = self.controller.store.jobs.values()
        for job in jobs:
            if job.state is State.BLOCKED and self.controller.up:
                self.storages[job.job].repair()
                self.controller.tell(job.job, Unblocked())
            elif job.state is State.FAILED and job.job not in self.resumed and self.controller.up:
                self.resumed.add(job.job)
                self.flaws[job.job].mended()
                self.controller.tell(job.job, ResumeRequested())
        return all(job.ended for job in self.controller.store.jobs.values())

    def _check_ends(self) -> None:
        for name, job in self.controller.store.jobs.items():
            self._check_over(name)
            if job.state is State.SUCCEEDED:
                assert name in self.finished, f"{name}: succeeded and never finished"
            elif job.state is State.CANCELLED:
                assert name in self.cancelled, f"{name}: cancelled, and nobody asked"
