"""Carries out what the lifecycle decided: commands from the outbox, one after the other for each job.

Every command can be repeated. What became of it comes back as events; a command that fails is tried again with
capped backoff, its error kept in the outbox for people to see.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from orch.control.acting import Acts
from orch.control.cluster import Cluster
from orch.control.configs import agent_config, bundle_of
from orch.control.cordons import cordoned
from orch.control.ends import record_end
from orch.control.failures import observed
from orch.control.home import Home
from orch.control.jobstorage import open_job_storage
from orch.control.killpoints import KillPoints
from orch.control.logcopies import LogCopies
from orch.control.resuming import BranchGoneError, ensure_branch, record_resume
from orch.control.rows import CommandRow
from orch.control.store import Store, StoreAwayError, StoreTakenError, now_us
from orch.model.commands import (
    CloseJob,
    Command,
    KillAgents,
    RaiseAttempt,
    RecordEnd,
    RecordResume,
    RemoveGang,
    RequestGang,
    StartAgents,
    StopAgents,
    command_from_dict,
)
from orch.model.events import AgentLost, BlockedBecause, Closed, Event, GangRemoved, StopOverdue
from orch.model.lease import LEASE_S
from orch_workers.checkpoint import Catalog
from orch_workers.config import WorkerPaths
from orch_workers.sweep import remains, sweep_job

POOL_THREADS = 8
GONE_LIMIT_S = 30.0
POLL_S = 0.02
RETRY_MIN_S, RETRY_MAX_S = 0.2, 10.0
RETRY_DOUBLINGS_MAX = 10
SWEEP_CALL_LIMIT_S = 40.0
TRIES_MAX = {"RecordEnd": 1000, "RecordResume": 1000}
"""Only these are ever given up, after some three hours: the job's storage may be gone for good."""
GIVEN_UP = {
    "RecordEnd": ("that it is over", "run it"),
    "RecordResume": ("that it was resumed", "not know what was changed"),
}
ENDING = ("RemoveGang", "KillAgents", "CloseJob", "StopAgents")
"""Commands that only give something back: carried out while the server stops, too."""

log = logging.getLogger("orch.executor")


class Executor:
    """Hands each pending command to a thread; `tell` takes the events that come of it (thread-safe)."""

    def __init__(
        self,
        store: Store,
        cluster: Cluster,
        home: Home,
        tell: Callable[[str, Event], None],
        watch: Callable[[str, int, int, Any], None],
        done: Callable[[], None],
        points: KillPoints,
        *,
        lease_s: float = LEASE_S,
    ) -> None:
        self._store, self._cluster, self._home, self._root = store, cluster, home, home.root
        self._acts, self._points, self._lease_s = Acts(store, cluster), points, lease_s
        self._tell, self._watch, self._done = tell, watch, done
        self.logs = LogCopies(home, cluster)
        self._pool = ThreadPoolExecutor(POOL_THREADS, thread_name_prefix="command")
        self._busy: set[str] = set()
        self._not_before: dict[int, float] = {}
        self._lock = threading.Lock()

    def ending(self) -> bool:
        """Whether something that was to be ended is not yet."""
        return any(row.type in ENDING for row in self._store.pending_commands())

    def look(self, *, only_ending: bool = False) -> float | None:
        """Starts what can be started; returns seconds until something that waits can be."""
        soonest: float | None = None
        with self._lock:
            blocked = set(self._busy)
        for row in self._store.pending_commands():
            if row.job in blocked or (only_ending and row.type not in ENDING):
                continue
            wait_s = self._wait_s(row)
            if wait_s > 0:
                # What waits for its time is passed by what came later (a cancel), which makes it pointless.
                soonest = wait_s if soonest is None else min(soonest, wait_s)
                continue
            blocked.add(row.job)  # otherwise in order for each job
            with self._lock:
                self._busy.add(row.job)
            self._pool.submit(self._carry_out, row)
        return soonest

    def _wait_s(self, row: CommandRow) -> float:
        retry_s = self._not_before.get(row.seq, 0.0) - time.monotonic()
        not_before_us = row.data.get("not_before_us")
        start_s = 0.0 if not_before_us is None else (not_before_us - now_us()) / 1e6
        return max(retry_s, start_s)

    def _carry_out(self, row: CommandRow) -> None:
        try:
            command = command_from_dict(row.data)
            self._points.here(command, "before")
            if row.tries >= TRIES_MAX.get(row.type, row.tries + 1):
                self._give_up(row)
            elif self._wanted(row.job, command):
                self._do(row.job, command)
            self._points.here(command, "after")
            self._store.command_done(row.seq)
            self._points.here(command, "done")
            self._not_before.pop(row.seq, None)
        except StoreTakenError as error:
            log.warning("%s of %s is left alone: %s", row.type, row.job, error)
        except Exception as error:
            log.warning(
                "%s of %s: %s", row.type, row.job, error, exc_info=not isinstance(error, StoreAwayError)
            )
            doublings = min(row.tries, RETRY_DOUBLINGS_MAX)
            self._not_before[row.seq] = time.monotonic() + min(RETRY_MIN_S * 2**doublings, RETRY_MAX_S)
            with contextlib.suppress(
                Exception
            ):  # the store's own trouble: this command is tried again all the same
                self._store.command_failed(row.seq, f"{type(error).__name__}: {error}")
        finally:
            with self._lock:
                self._busy.discard(row.job)
            self._done()

    def _give_up(self, row: CommandRow) -> None:
        log.warning("%s of %s is given up: %s", row.type, row.job, row.last_error)
        what, then = GIVEN_UP[row.type]
        text = f"{what} could not be written into its storage ({row.last_error}): `orch recover` would {then}"
        with self._store.transaction() as transaction:
            transaction.add_note(row.job, text, t_us=now_us())

    def _wanted(self, job: str, command: Command) -> bool:
        from orch.control.lifecycle import still_wanted

        return still_wanted(self._store.lifecycle(job), command)

    def _do(self, job: str, command: Command) -> None:
        match command:
            case RequestGang():
                spec = self._store.job(job).spec
                self._acts.request_gang(
                    job,
                    command.attempt,
                    bundle_of(spec),
                    spec["resources"]["workers"],
                    avoid=sorted(cordoned(self._store.unfinished(), now_us())),
                    placement=spec.get("placement"),
                )
            case RemoveGang():
                self.logs.finish(job)
                self._end_agents(job)
                self._acts.remove_gang(job, command.attempt)
                self._until_gone(job, [command.attempt])
                self._tell(job, GangRemoved(attempt=command.attempt))
            case StartAgents():
                self._start_agents(job, command)
            case RaiseAttempt():
                for rank in command.ranks:
                    self._call(job, rank, "raise_attempt", command.attempt, dict(command.policy))
            case StopAgents():
                self._stop_agents(job, command)
            case KillAgents():
                for rank, attempt in command.strays.items():
                    self._acts.kill_agent(job, attempt, rank)
            case CloseJob():
                self._close(job, command)
            case RecordResume():
                self._branching(job, lambda: record_resume(self._store, self._home, job, command))
            case RecordEnd():
                record_end(self._store, self._home, job)

    def _branching(self, job: str, act: Callable[[], None]) -> bool:
        """False: the checkpoint that the job was to go on from is gone, and the job is blocked."""
        try:
            act()
        except BranchGoneError as error:
            self._tell(job, BlockedBecause(reason=str(error), branch=error.branch))
            return False
        return True

    def _start_agents(self, job: str, command: StartAgents) -> None:
        branch = command.branch
        if branch is not None and not self._branching(
            job, lambda: ensure_branch(Catalog(open_job_storage(self._store, self._home, job), job), branch)
        ):
            return
        detail = self._store.job(job)
        auto = detail.spec["checkpoint"]["every"] == "auto"
        seen = observed(self._store, job, now_us(), others=auto)
        for rank in command.ranks:
            config = agent_config(detail, command, rank, self._root, seen, lease_s=self._lease_s)
            try:
                handle = self._acts.start_agent(
                    config.to_dict(), gang_attempt=command.gang_attempt, bundle=bundle_of(detail.spec)
                )
            except LookupError as error:
                self._tell(
                    job, AgentLost(attempt=command.attempt, rank=rank, evidence=str(error), node_lost=True)
                )
                continue
            self._watch(job, command.attempt, rank, handle)

    def _stop_agents(self, job: str, command: StopAgents) -> None:
        outcome = "stopped"
        for other, attempt, rank in self._cluster.agents():
            handle = self._cluster.find_agent(job, attempt, rank) if other == job else None
            if handle is not None:
                if command.notice:
                    self._acts.tell(handle, "preempt", command.notice, command.grace_s)
                else:
                    self._acts.tell(handle, "stop", outcome, command.grace_s)
        delay_s = max(0.0, (command.deadline_us - now_us()) / 1e6)
        timer = threading.Timer(delay_s, self._tell, (job, StopOverdue(attempt=command.attempt)))
        timer.daemon = True
        timer.start()

    def _call(self, job: str, rank: int, method: str, *arguments: Any) -> None:
        for other, attempt, found in self._cluster.agents():
            handle = self._cluster.find_agent(job, attempt, rank) if (other, found) == (job, rank) else None
            if handle is not None:
                self._acts.call(handle, method, *arguments)

    def _close(self, job: str, command: CloseJob) -> None:
        self.logs.finish(job)
        if command.sweep:
            for other, attempt, rank in self._cluster.agents():
                handle = self._cluster.find_agent(job, attempt, rank) if other == job else None
                if handle is not None:
                    self._try_sweep(handle)
        self._end_agents(job)
        attempts = [attempt for other, attempt in self._cluster.gangs() if other == job]
        for attempt in attempts:
            self._acts.remove_gang(job, attempt)
        self._until_gone(job, attempts)
        if command.sweep:
            # An agent that died before it could sweep: this machine's part of it is done here.
            paths = WorkerPaths(job, 0, self._root / "node", self._root / "jobs")
            if remains(paths):
                self._store.assert_held()
                sweep_job(paths)
        self._tell(job, Closed(attempt=command.attempt, swept=command.sweep))

    def _try_sweep(self, handle: Any) -> None:
        try:
            self._acts.call(handle, "sweep", limit_s=SWEEP_CALL_LIMIT_S)
        except StoreTakenError:
            raise
        except Exception as error:
            log.warning("an agent could not sweep: %s", error)

    def _end_agents(self, job: str) -> None:
        for other, attempt, rank in self._cluster.agents():
            if other == job:
                self._acts.kill_agent(job, attempt, rank)

    def _until_gone(self, job: str, attempts: list[int]) -> None:
        """Over is what was seen to be over. TimeoutError after GONE_LIMIT_S; the command is then tried again."""
        deadline = time.monotonic() + GONE_LIMIT_S
        while True:
            agents = [name for name in self._cluster.agents() if name[0] == job]
            gangs = [attempt for attempt in attempts if self._cluster.gang_exists(job, attempt)]
            if not agents and not gangs:
                return
            if time.monotonic() > deadline:
                raise TimeoutError(f"still there after {GONE_LIMIT_S:g} s: agents {agents}, gangs {gangs}")
            time.sleep(POLL_S)
