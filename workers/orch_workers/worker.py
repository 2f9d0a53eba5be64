"""One rank on one machine: decides about its training process, in a single thread that takes one event at a time.

The process, the socket, the writer and the controller's calls live in threads of their own and only put calls
into this loop's queue, so every decision sees the one before it. The worker knows nothing of Ray: `agent.py`
wraps it in an actor, the tests run it as it is.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any

from orch.model.events import CheckpointCommitted, Event, ProcessStarted, Restored, WorkerEnded
from orch.model.generation import Generation
from orch_workers.config import WorkerConfig
from orch_workers.drill import Drill
from orch_workers.ending import Homecoming, end_of
from orch_workers.environments.own import Around, own_environment
from orch_workers.exits import Exit
from orch_workers.files.keeper import FilesKeeper
from orch_workers.hangs import Hang, HangWatch
from orch_workers.judging import Judge, exited, restart_decided
from orch_workers.keeper import Keeper
from orch_workers.ledger import Ledger
from orch_workers.left_here import left_here
from orch_workers.logs.attempt_log import AttemptLog
from orch_workers.logs.redaction import Redactor
from orch_workers.numbers import LossWatch
from orch_workers.process.launch import SOURCES, Launcher
from orch_workers.process.sampling import Sampler
from orch_workers.process.stacks import read_stacks
from orch_workers.recovery import Recovery
from orch_workers.reports import Reports
from orch_workers.stops import Stop
from orch_workers.telling import Telling
from orch_workers.written import write_down

TICK_S = 0.25
"""How often the loop looks at the progress page when nothing happens."""
TICK_RECOVERING_S = 0.02
"""The same while the first new step after a start is awaited: its time is reported."""

log = logging.getLogger(__name__)


class Worker:
    """Lives from `start` until its worker ended; then it only answers."""

    def __init__(
        self,
        config: WorkerConfig,
        reports: Reports,
        secrets: Callable[[], Mapping[str, str]],
        *,
        give_up: Callable[[], None],
    ) -> None:
        """`give_up` ends this process at once: what an agent does when it meets a fault of its own."""
        self._config, self._reports, self._secrets, self._give_up = config, reports, secrets, give_up
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._ledger = Ledger(config.policy)
        self._generation = Generation(config.attempt, 0)
        self._stop = Stop()
        self.stopping = self._stop.asked
        self._start_at: float | None = None
        self._recovery = Recovery(self._ledger)
        self._judge = Judge(config.paths.log)
        self._losses = LossWatch()
        self._hangs = HangWatch(config.hang, read_stacks, self.note)
        self._awaiting_exit = False
        self._gang_waits = False
        """Another rank waits for storage, and so this one for it."""
        self._drill = Drill(config.drill, config.rank, config.world_size)
        self._fatal: str | None = None
        self._finished = self._ended = self._halted = self._retired = False
        self.outcome = self.unkept = ""
        """At its end: what of its state and outputs could not be brought into storage."""
        visible = os.environ.get("CUDA_VISIBLE_DEVICES") if config.gpus else ""
        self._telling = Telling(reports, Sampler(visible), self._state)
        self._log = AttemptLog(config.paths.log, config.rank)
        self._keeper: Keeper | None = None
        self._launcher: Launcher | None = None
        self._thread = threading.Thread(target=self._run, name="worker", daemon=True)

    # called from other threads

    def start(self) -> None:
        self._thread.start()

    def stop(self, outcome: str, grace_s: float, reason: str = "", until_s: float | None = None) -> None:
        """Ends the worker ("stopped" or "left"), its process within `grace_s` (0: now). `until_s`: see Stop."""
        self._stop.ask(outcome, reason, until_s)
        self._inbox.put(lambda: self._on_stop(outcome, grace_s))

    def halt(self) -> None:
        """The job is over for the controller: ends what runs, without waiting for the loop or for storage."""
        self._halted = True
        self.stopping.set()
        if self._launcher is not None:
            self._launcher.kill()

    def note(self, message: str) -> None:
        """Something a person should see in status; told at once, whatever the loop is waiting for."""
        self._telling.note(message, self._generation, self._pids())

    def save_soon(self) -> None:
        """A snapshot at the next step, whatever the interval says."""
        if self._launcher is not None:
            self._inbox.put(self._launcher.save_soon)

    @property
    def durable_s(self) -> float | None:
        """How long a save takes from memory into storage, where that is known."""
        return self._keeper.pacing.status()["durable_s"] if self._keeper is not None else None

    @property
    def ended(self) -> bool:
        return self._ended

    # the loop

    def _run(self) -> None:
        self._guarded(self._set_up)
        while not self._retired:
            try:
                call = self._inbox.get(timeout=TICK_RECOVERING_S if self._is_watching else TICK_S)
            except queue.Empty:
                call = self._tick
            if not self._ended and not self._halted:
                self._guarded(call)

    @property
    def _is_watching(self) -> bool:
        launcher = self._launcher
        return self._recovery.awaiting_first_step or (launcher is not None and launcher.drill_pending)

    def _guarded(self, call: Callable[[], None]) -> None:
        """What a person must mend blocks the job; a fault of ours costs this agent, never the job its state."""
        try:
            call()
        except Exception as error:
            end = end_of(error, self._stop)
            if end is not None:
                self._end(**end)
                return
            log.exception("the agent met a fault of its own and gives up")
            self._log.tell(f"orch: the agent met a fault of its own and goes:\n{traceback.format_exc()}")
            self._give_up()

    def _set_up(self) -> None:
        secrets = self._secrets()
        self._log.redactor = Redactor(secrets.values())
        self._keeper = self._make_keeper(secrets)
        self._launcher = Launcher(self._config, secrets, self, self._keeper)
        self._recovery.reached = self._launcher.prepare()
        self._keeper.attach(self._launcher)
        self._telling.draw_of(self._config, self._keeper)
        self._keeper.open()
        restart, end, done = left_here(self._config, self._reports)
        self._generation = Generation(self._config.attempt, restart)
        if end is not None and end["outcome"] == "failed":
            # Decided, and not told: the agent before this one died with the news.
            known = {name: end[name] for name in ("exit_code", "traceback", "step")}
            self._end("failed", end["reason"], **known)
        elif done is not None:
            self._end("succeeded", "the command exited with code 0", exit_code=0, step=done["step"])
        elif not self.stopping.is_set():
            around = Around(self._log, self.note, self.stopping, has_trained=self._ledger.highest_step > 0)
            self._launcher.own = own_environment(self._config, secrets, self._launcher.workdir, around)
            self._ready()

    def _make_keeper(self, secrets: Mapping[str, str]) -> Keeper:
        kind = FilesKeeper if self._config.files else Keeper
        return kind(self._config, secrets, **self._of_keeper())

    def _of_keeper(self) -> dict[str, Any]:
        return {
            "tell": self._tell_committed,
            "note": self.note,
            "superseded": self._on_superseded,
            "stopping": self.stopping,
        }

    def _ready(self) -> None:
        """Everything is there that a process needs. A rank of a gang waits for the others here (gang/worker.py)."""
        self._start_process()

    def _tell_committed(
        self, step: int, generation: Generation, size_bytes: int, seconds_s: float, extra: dict[str, Any]
    ) -> None:
        self._ledger.committed(step)
        self._telling.committed(step)
        blocked_s = extra.pop("blocked_s", None)
        event = CheckpointCommitted(
            generation=generation, step=step, size_bytes=size_bytes, seconds_s=seconds_s, blocked_s=blocked_s
        )
        self._reports.add(event, **extra)

    def _start_process(self, generation: Generation | None = None) -> None:
        """`generation`: the next one, unless the leader of a gang has named it."""
        self._start_at = None
        self._generation = generation or Generation(self._config.attempt, self._generation.restart + 1)
        self._fatal, self._finished = None, False
        assert self._keeper is not None
        assert self._launcher is not None
        self._keeper.start_generation(self._generation)
        self._log.begin(self._keeper, self._generation)
        pid = self._launcher.start(self._generation)
        if self._halted:
            self._launcher.kill()  # `halt` came between, and found nothing to end yet
        self._judge.began(pid)
        self._losses.began()
        self._hangs.began()
        self._recovery.began()
        self._awaiting_exit = True
        self._reports.add(ProcessStarted(generation=self._generation, rank=self._config.rank, pid=pid))

    # what the training process says (through the launcher)

    def on_restored(self, step: int, source: str, seconds_s: float) -> None:
        self._telling.restored(self._generation, step)  # at once, as metrics: they must not overtake it

        def act() -> None:
            self._recovery.restored(step)
            self._losses.restored(step)
            if source in SOURCES and not self._config.rank:  # of all ranks together the leader tells it
                self._reports.add(
                    Restored(generation=self._generation, step=step, source=source, seconds_s=seconds_s)
                )

        self._inbox.put(act)

    def on_event(self, event: Event) -> None:
        self._inbox.put(lambda: self._reports.add(event))

    def on_mismatch(self, message: str) -> None:
        def act() -> None:
            self._fatal = message

        self._inbox.put(act)

    def on_metrics(self, step: int, values: Mapping[str, Any]) -> None:
        self._telling.metrics(step, values)
        generation = self._generation

        def act() -> None:
            failure = self._losses.look(step, values) if generation == self._generation else None
            if failure is not None and self._awaiting_exit and self._launcher is not None:
                self._judge.condemn(failure)
                self._launcher.end_process()

        self._inbox.put(act)

    def on_finished(self) -> None:
        def act() -> None:
            self._finished = True

        self._inbox.put(act)

    def on_unrestorable(self, message: str) -> None:
        self._inbox.put(lambda: self._end("blocked", message))

    def _on_superseded(self, message: str) -> None:
        self._inbox.put(lambda: self._end("left", f"a newer generation of this job exists: {message}"))

    def on_exit(self, code: int | None, signal: int | None, at_ns: int) -> None:
        """The command ended and nothing of its tree is left."""
        self._inbox.put(lambda: self._on_exit(code, signal, at_ns))

    def _on_stop(self, outcome: str, grace_s: float) -> None:
        if self._launcher is None or not self._awaiting_exit:
            self._end(outcome, self._stop.reason or "stopped before a training process ran")
            return
        self._launcher.stop(grace_s)

    # the process ended

    def _on_exit(self, code: int | None, signal: int | None, at_ns: int) -> None:
        assert self._launcher is not None
        assert self._keeper is not None
        self._look_at_page()
        known = self._launcher.tells_steps
        step = self._launcher.progress().step or self._recovery.restored_step or 0
        self._recovery.exited(at_ns)
        self._awaiting_exit = False
        in_time = not self._stop.was_before(at_ns)
        succeeded = (code == 0 and (self._finished or in_time)) or self._drill.is_over(code, step)
        self._after(Exit(code, signal, at_ns, step, known, succeeded))

    def _after(self, ended: Exit) -> None:
        """What follows from the end of a process. In a gang that is the leader's to say."""
        assert self._keeper is not None
        assert self._launcher is not None
        if ended.succeeded:
            # Before anything that takes time: whoever comes after this agent must not run the command again.
            self._note_success(ended.step)
        self._keeper.process_gone(well=ended.code == 0)
        if ended.succeeded:
            step = self._launcher.progress().step or ended.step
            self._end("succeeded", ended.why_succeeded, exit_code=ended.code, step=step)
        elif self.stopping.is_set():
            why = self._stop.reason or "left when told to"
            self._end(self._stop.outcome, why, exit_code=ended.code, step=ended.step)
        else:
            at = self._keeper.failed_at(ended.step if ended.known else None, ended.code, ended.signal)
            self._decide(ended.standing_at(at))

    def _note_success(self, step: int) -> None:  # on a full disk it is told all the same
        try:
            write_down(self._config.paths.done, {"generation": str(self._generation), "step": step})
        except OSError as error:
            self.note(f"the success could not be noted on this machine: {error}")

    def _decide(self, ended: Exit) -> None:
        assert self._keeper is not None
        assert self._launcher is not None
        seen = ended.failure(self._fatal)
        found = self._judge.judge(seen, self._log.redactor)
        decision = self._ledger.decide(found.failure, str(self._generation))
        poisoned: list[tuple[str, int]] = []
        if found.failure.kind == "bad_numbers":
            poisoned = self._losses.leave_behind(self._keeper, self._launcher, self._generation)
            self.note(self._losses.sentence(poisoned))
        self._reports.add(
            exited(self._generation, self._config.rank, seen, found, ended.at_ns),
            traceback=found.traceback,
            poisoned=poisoned,
            left_behind=self._keeper.left_behind,
        )
        if decision.action == "fail":
            self._end("failed", decision.reason, exit_code=ended.code, traceback=found.error, step=seen.step)
            return
        following = Generation(self._config.attempt, self._generation.restart + 1)
        # In the journal on disk before it is acted on: write down, then act.
        self._reports.add(restart_decided(following, found.failure, decision, seen.step))
        if decision.delay_s <= 0:
            self._start_process()
        else:
            self._start_at = time.monotonic() + decision.delay_s

    def _end(self, outcome: str, reason: str, **more: Any) -> None:
        """Everything that is to be kept is kept, then the end is told. What cannot be kept is said, and part of the
        reason; nothing that goes wrong here keeps the end from being told.
        """
        if self._ended or self._retired:
            return
        self.outcome = outcome
        for part in (self._end_process, lambda: self._bring_home(outcome), self._close):
            try:
                reason += part() or ""
            except Exception as error:
                log.exception("something went wrong at the worker's end")
                reason += f"; {type(error).__name__}: {error}"
        self._ended = True
        self._reports.add(
            WorkerEnded(
                attempt=self._config.placed_by, rank=self._config.rank, outcome=outcome, reason=reason, **more
            )
        )

    def _end_process(self) -> None:
        if self._launcher is not None:
            self._launcher.kill()

    def _bring_home(self, outcome: str) -> str:
        launcher, keeper = self._launcher, self._keeper
        if launcher is None or keeper is None:
            return ""
        home = self._homecoming(patient=outcome == "succeeded")
        self.unkept = home.bring(keeper, launcher.workdir, self._generation)
        return self.unkept

    def _homecoming(self, *, patient: bool) -> Homecoming:
        return Homecoming(
            self._config, patient=patient, stop=self._stop, halted=lambda: self._halted, note=self.note
        )

    def _close(self) -> str:
        if self._launcher is not None:
            self._launcher.close()
        self._log.close()
        self._telling.close()
        if self._keeper is not None:
            self._keeper.close()
        self._tell_progress()
        return ""

    # time passing

    def _tick(self) -> None:
        if self._start_at is not None and time.monotonic() >= self._start_at:
            if not self.stopping.is_set():
                self._start_process()
            return
        self._look_at_page()
        self._look_for_hang()
        if self._telling.due:
            self._judge.look(self._pids())
            self._tell_progress()

    def _look_for_hang(self) -> None:
        launcher = self._launcher
        if launcher is None or not self._awaiting_exit or self._judge.condemned or self.stopping.is_set():
            return
        hang = self._hangs.look_at(
            launcher, self._recovery.restored_step or 0, finished=self._finished, saving=self._gang_waits
        )
        if hang is not None:
            self._log.tell(f"orch: {hang.failure.message}. What its processes were doing:\n{hang.stacks}\n")
            self._on_hang(hang)

    def _on_hang(self, hang: Hang) -> None:
        assert self._launcher is not None
        self._judge.condemn(hang.failure)
        self._launcher.end_process()

    def _look_at_page(self) -> None:
        launcher = self._launcher
        if launcher is None or not self._recovery.readable:
            return
        progress = launcher.progress()
        recovered = self._recovery.look(progress, self._generation, launcher.phases)
        if recovered is not None and self._config.rank == 0:
            self._reports.add(recovered)
        launcher.kill_for_drill(progress.step)
        if not self.stopping.is_set() and self._start_at is None:
            self._save_when_due(launcher, progress.step)

    def _save_when_due(self, launcher: Launcher, step: int) -> None:
        launcher.save_when_due(step)

    def _tell_progress(self) -> None:
        self._telling.tell(self._generation, self._pids())

    def _pids(self) -> list[int]:
        return [] if self._launcher is None else self._launcher.pids()

    def _state(self) -> dict[str, Any]:
        """What is told beside notes and metrics."""
        launcher, keeper = self._launcher, self._keeper
        return {
            "page": launcher.progress() if launcher is not None and launcher.tells_steps else None,
            "usage": launcher.usage() if launcher is not None else {},
            **(keeper.status() if keeper is not None else {}),
        }
