"""Runs the lifecycle of every job: events in, written down, commands carried out.

One thread applies events, so that each decision sees the one before it; Ray's answers, the API's threads and
the executor only put things into its inbox. Kill it at any moment: training goes on, and its successor reads
the store, looks at what is there and goes on.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from orch.control import lifecycle
from orch.control.acting import Acts
from orch.control.cluster import Cluster, is_death
from orch.control.cordons import cordoned, request_of, why_held
from orch.control.executor import Executor
from orch.control.home import Home
from orch.control.killpoints import KillPoints
from orch.control.losses import agent_lost
from orch.control.progress import write_progress
from orch.control.saving import leave_all
from orch.control.service import Bell
from orch.control.store import Store, StoreAwayError, StoreTakenError, Transaction, now_us
from orch.control.tables import down_us, tabulate
from orch.model.commands import command_to_dict
from orch.model.events import (
    Adopted,
    AgentLost,
    AgentUp,
    Event,
    GangGranted,
    Progressed,
    Recovered,
    Submitted,
    TurnCame,
    TurnLost,
    WorkerEnded,
    event_from_dict,
    event_to_dict,
)
from orch.model.generation import Generation
from orch.model.lease import LEASE_S
from orch.model.states import ENDED, JobState, State
from orch_policies.queue import Waiting, order

TICK_S = 0.5
"""How often the queue is looked at when nothing happens."""
GANG_POLL_S = 0.02
"""The same while a gang is asked for and not granted yet: Ray tells nobody when it is."""
GANG_POLL_SLOW_S = 0.5
WATCH_AGAIN_S = 0.3
"""Pause before an agent that could not be reached is asked again; that is no evidence of its death."""

T = TypeVar("T")

log = logging.getLogger("orch.controller")


class Controller:
    """The engine behind the API. `start` adopts what is there; `on_taken` is called when another one took over."""

    def __init__(
        self,
        store: Store,
        cluster: Cluster,
        home: Home,
        on_taken: Callable[[], None],
        *,
        lease_s: float = LEASE_S,
    ) -> None:
        self.store, self.cluster, self.home = store, cluster, home
        self._on_taken = on_taken
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._watched: set[tuple[str, int, int]] = set()
        self._places: dict[tuple[str, int, int], str] = {}
        self._waiting_since = time.monotonic()
        self._halted = False
        self._taken: StoreTakenError | None = None
        self.points = KillPoints(home.root)
        self._cordons: frozenset[str] = frozenset()
        self._asked_for_gang = False
        self.bell = Bell()
        self.turns: dict[str, str] = {}
        """Of jobs that wait: who comes before them, as last looked. Read by the API's threads."""
        self._executor = Executor(
            store,
            cluster,
            home,
            tell=self.tell,
            watch=self._watch_soon,
            done=lambda: self._inbox.put(self._look),
            points=self.points,
            lease_s=lease_s,
        )
        self._thread = threading.Thread(target=self._run, name="controller", daemon=True)

    def start(self) -> None:
        self.points.look()
        self.store.claim()
        self._executor.logs.start()
        self._thread.start()

    # from any thread

    def tell(self, job: str, event: Event) -> None:
        """Applies `event` soon; when the store is away, as soon as it is back: what was seen happens once."""
        self._inbox.put(lambda: self._insist(lambda: self.apply(job, event)))

    def ask(self, act: Callable[[], T], limit_s: float = 30.0) -> T:
        """Runs `act` in the controller's thread and returns what it returns, or raises what it raises."""
        done = threading.Event()
        box: list[Any] = []

        def run() -> None:
            try:
                box.extend((True, act()))
            except StoreTakenError as error:
                box.extend((False, error))
                raise
            except Exception as error:
                box.extend((False, error))
            finally:
                done.set()

        if self._taken is not None:
            raise self._taken
        self._inbox.put(run)
        if not done.wait(limit_s):
            raise self._taken or TimeoutError(f"the controller did not get to it within {limit_s:g} s")
        good, found = box
        if not good:
            raise found
        result: T = found
        return result

    # the loop

    def _run(self) -> None:
        self._guarded(lambda: self._insist(self._adopt_all))
        while True:
            try:
                act = self._inbox.get(timeout=self._pause_s())
            except queue.Empty:
                act = self._look
            if not self._guarded(act):
                return

    def _guarded(self, act: Callable[[], None]) -> bool:
        try:
            act()
        except StoreTakenError as error:
            log.warning("%s: this one acts no more", error)
            self._taken = error
            self._on_taken()
            return False
        except StoreAwayError:
            pass  # the store has said so; what needs it comes again
        except Exception:
            log.exception("the controller goes on after an error")
        return True

    def _pause_s(self) -> float:
        if not self._asked_for_gang:
            return TICK_S
        young = time.monotonic() - self._waiting_since < 5.0
        return GANG_POLL_S if young else GANG_POLL_SLOW_S

    def _look(self) -> None:
        """The queue's turn, gangs that were granted meanwhile, commands that wait."""
        self.points.look()
        self.store.assert_held()  # one that has nothing to write must notice, too
        if self._halted:
            self._executor.look(only_ending=True)
            return
        unfinished = self.store.unfinished()
        waiting = [job for job in unfinished if job.state is State.QUEUED]
        self._turns(waiting, cordoned(unfinished, now_us()))
        pending = [job for job in waiting if job.gang is not None and not job.gang_granted]
        for job in pending:
            if job.gang is not None and self.cluster.gang_granted(job.job, job.gang):
                self.apply(job.job, GangGranted(attempt=job.gang))
        if bool(pending) and not self._asked_for_gang:
            self._waiting_since = time.monotonic()
        self._asked_for_gang = bool(pending)
        self._executor.look()

    def _turns(self, waiting: list[JobState], cordons: dict[str, int]) -> None:
        """Only the first in the queue may ask for its gang, so that small jobs cannot starve a large one."""
        now = now_us()
        # A job in backoff, or whose last gang is still being removed, keeps nobody else waiting.
        waiting = [job for job in waiting if job.gang is not None or job.placeable(now)]
        held = self._held_back(waiting, cordons)
        waiting = [job for job in waiting if job.job not in held]
        priorities = self.store.priorities([job.job for job in waiting]) if waiting else {}
        turns = order(Waiting(job.job, priorities[job.job], job.submitted_us) for job in waiting)
        self.turns = {turn.job_id: turn.reason for turn in turns} | held
        if not turns:
            return
        states = {job.job: job for job in waiting}
        for turn in turns[1:]:
            state = states[turn.job_id]
            if state.gang is not None and not state.gang_granted:
                self.apply(turn.job_id, TurnLost(reason=turn.reason))
        first = states[turns[0].job_id]
        if first.placeable(now):
            self.apply(first.job, TurnCame())

    def _held_back(self, waiting: list[JobState], cordons: dict[str, int]) -> dict[str, str]:
        """Jobs that only a cordoned machine could hold, with the reason. They keep nobody else waiting either."""
        if self._cordons - cordons.keys():
            for job in waiting:  # what was asked for while a cordon held must not be kept from that machine
                if job.gang is not None and not job.gang_granted:
                    self.apply(job.job, TurnLost(reason="a machine may be used again"))
        self._cordons = frozenset(cordons)
        if not cordons:
            return {}
        nodes = self.cluster.nodes()
        asked = {job.job: request_of(self.store.job(job.job).spec) for job in waiting if job.gang is None}
        reasons = {job: why_held(request, nodes, cordons) for job, request in asked.items()}
        return {job: reason for job, reason in reasons.items() if reason}

    def apply(
        self,
        job: str,
        event: Event,
        entry: dict[str, Any] | None = None,
        also: Callable[[Transaction], None] | None = None,
    ) -> None:
        """One event: consumed, decided, written down with its commands and what else belongs to it, all at once."""
        now = now_us()
        self.points.here(event, "before")
        with self.store.transaction() as transaction:
            if entry is not None and not transaction.consume(
                job, entry["attempt"], entry["rank"], entry["seq"]
            ):
                return
            before = transaction.lifecycle(job)
            after, commands = lifecycle.advance(before, event, now)
            told = after.story[-1]
            quiet = isinstance(event, (Progressed, TurnCame)) and not commands and before.state is after.state
            if not quiet:
                document = {**event_to_dict(event), **((entry or {}).get("extra") or {})}
                if isinstance(event, Recovered) and (spent_us := down_us(before, now)) is not None:
                    document["down_s"] = spent_us / 1e6
                transaction.append_event(
                    job,
                    document,
                    t_us=entry["t_us"] if entry else now,
                    cause=getattr(event, "reason", None) or None,
                    decision=told.decision or None,
                )
            transaction.save(after)
            if also is not None:
                also(transaction)
            tabulate(transaction, before, after, event, now, (entry or {}).get("extra") or {})
            for command in commands:
                transaction.enqueue(job, command_to_dict(command), t_us=now)
            self.points.here(event, "inside")
        self.points.here(event, "after")
        self.bell.ring(job)
        if commands or after.state in ENDED or after.state is State.QUEUED:
            self._inbox.put(self._look)

    def submit(self, event: Submitted, insert: Callable[[Any, JobState], None]) -> None:
        """Writes a new job down (`insert` puts its row) and gives it its place in the queue. Called through `ask`."""
        now = now_us()
        self.points.here(event, "before")
        state, commands = lifecycle.begin(event, now)
        with self.store.transaction() as transaction:
            insert(transaction, state)
            transaction.append_event(
                event.job, event_to_dict(event), t_us=now, decision=state.story[-1].decision
            )
            for command in commands:
                transaction.enqueue(event.job, command_to_dict(command), t_us=now)
            self.points.here(event, "inside")
        self.points.here(event, "after")
        self.bell.ring(event.job)
        self._look()

    def save_all(self, limit_s: float) -> int:
        """Before the server stops: every worker saves what it holds and leaves. Their jobs go on at the next start.

        Returns how many did so within the limit.
        """
        self._halted = True  # what they tell is still written down; nothing new is started
        deadline = time.monotonic() + limit_s
        left = leave_all(self.cluster, Acts(self.store, self.cluster), limit_s)
        while (self._executor.ending() or self.cluster.agents()) and time.monotonic() < deadline:
            self._inbox.put(self._look)
            time.sleep(GANG_POLL_SLOW_S)
        return left

    # agents

    def _watch_soon(self, job: str, attempt: int, rank: int, handle: Any) -> None:
        self._inbox.put(lambda: self._meet(job, attempt, rank, handle))

    def _meet(self, job: str, attempt: int, rank: int, handle: Any) -> None:
        """Asks a new agent who it is; then one call is always pending on it, so that its death is seen at once."""
        if (job, attempt, rank) in self._watched:
            return
        self._watched.add((job, attempt, rank))

        def answered(done: Any) -> None:
            error = done.exception()
            if error is None:
                self._inbox.put(lambda: self._met(job, attempt, rank, handle, done.result()))
            else:
                self._inbox.put(lambda: self._unanswered(job, attempt, rank, handle, error))

        handle.describe.remote().future().add_done_callback(answered)

    def _met(self, job: str, attempt: int, rank: int, handle: Any, who: dict[str, Any]) -> None:
        def act() -> None:
            self._places[job, attempt, rank] = who["node_id"]
            for entry in who["backlog"]:
                # What an earlier agent of this rank wrote into its journal and could no longer tell.
                if entry["attempt"] < attempt:
                    self._apply_entry(job, entry)
            where = {name: who[name] for name in ("node", "node_id", "pid")}
            self.apply(job, AgentUp(attempt=attempt, rank=rank, **where))
            self._watch(job, attempt, rank, handle)

        self._insist(act)

    def _insist(self, act: Callable[[], None]) -> None:
        """Does it now, or again soon: a store that is locked or full must not make the controller deaf to an agent."""
        try:
            act()
        except (StoreTakenError, lifecycle.InvalidTransition):
            raise
        except Exception as error:
            log.warning("put off: %s", error, exc_info=not isinstance(error, StoreAwayError))
            self._later(lambda: self._insist(act))

    def _later(self, act: Callable[[], None]) -> None:
        timer = threading.Timer(WATCH_AGAIN_S, self._inbox.put, (act,))
        timer.daemon = True
        timer.start()

    def _watch(self, job: str, attempt: int, rank: int, handle: Any) -> None:
        cursor = self.store.cursor(job, attempt, rank)

        def answered(answer: Any, error: BaseException | None) -> None:
            if error is None:
                self._inbox.put(lambda: self._heard(job, attempt, rank, handle, answer))
            else:
                self._inbox.put(lambda: self._unanswered(job, attempt, rank, handle, error))

        self.cluster.watch(handle, cursor, answered)

    def _heard(self, job: str, attempt: int, rank: int, handle: Any, answer: dict[str, Any]) -> None:
        def act() -> None:
            for entry in answer["entries"]:
                self._apply_entry(job, entry)
            if answer["progress"] is not None:
                self._progressed(job, rank, answer["progress"])
            if not any(entry["event"]["type"] == WorkerEnded.__name__ for entry in answer["entries"]):
                self._watch(job, attempt, rank, handle)  # one that ended only waits to be closed

        self._insist(act)

    def _apply_entry(self, job: str, entry: dict[str, Any]) -> None:
        try:
            self.apply(job, event_from_dict(entry["event"]), entry)
        except lifecycle.InvalidTransition:
            log.exception("an agent of %s told what cannot be; it is skipped", job)
            with self.store.transaction() as transaction:
                transaction.consume(job, entry["attempt"], entry["rank"], entry["seq"])

    def _unanswered(self, job: str, attempt: int, rank: int, handle: Any, error: BaseException) -> None:
        if not is_death(error):
            log.info("agent %s/%s/%s cannot be reached (%s); asked again", job, attempt, rank, error)
            self._later(lambda: self._insist(lambda: self._watch(job, attempt, rank, handle)))
            return

        def act() -> None:
            progress = self.store.progress([job], rank=rank).get(job)
            place = self._places.get((job, attempt, rank))
            lost = agent_lost(
                self.cluster, attempt, rank, error, place=place, progress=progress, now_us=now_us()
            )
            self._apply_lost(job, lost)
            self._watched.discard((job, attempt, rank))
            self._places.pop((job, attempt, rank), None)

        self._insist(act)

    def _apply_lost(self, job: str, lost: AgentLost) -> None:
        try:
            self.apply(job, lost)
        except lifecycle.InvalidTransition:
            log.info("the agent of %s that died was not expected any more", job)

    def _progressed(self, job: str, rank: int, told: dict[str, Any]) -> None:
        state = write_progress(self.store, job, rank, told)
        self.bell.ring(job)
        # The lifecycle hears of steps when they matter to it: the first after a start; not each of them.
        if rank == 0 and told["step"] is not None and state.state in {State.STARTING, State.RECOVERING}:
            generation = Generation.parse(told["generation"])
            self.apply(job, Progressed(generation=generation, step=told["step"], epoch=told["epoch"]))

    # adoption

    def _adopt_all(self) -> None:
        """What is in the cluster, against what the store knows: survivors go on, the rest is decided anew."""
        agents = self.cluster.agents()
        gangs = self.cluster.gangs()
        for state in self.store.unfinished():
            if state.attempt > 0:  # otherwise never placed: nothing to adopt
                self._insist(lambda state=state: self._adopt(state, agents, gangs))  # type: ignore[misc]
        self._look()

    def _adopt(
        self, state: JobState, agents: list[tuple[str, int, int]], gangs: list[tuple[str, int]]
    ) -> None:
        expected = {rank: agent.placed for rank, agent in state.agents.items()}
        found: dict[int, int] = {}
        for job, attempt, rank in sorted(agents):
            if job == state.job and (rank not in found or found[rank] != expected.get(rank)):
                found[rank] = attempt  # the expected one, else any: the lifecycle has strays ended
        mine = [attempt for job, attempt in sorted(gangs) if job == state.job]
        gang = state.gang if state.gang in mine else (mine[-1] if mine else None)
        self.apply(state.job, Adopted(found=found, gang=gang))
        for rank, attempt in found.items():
            handle = self.cluster.find_agent(state.job, attempt, rank)
            if handle is not None and expected.get(rank) == attempt:
                self._meet(state.job, attempt, rank, handle)
