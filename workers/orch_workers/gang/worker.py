"""One rank of a gang: a worker that starts, saves, restores and leaves together with the others.

What a worker of its own decides, the gang decides here: the leader (leader.py), by way of the member (member.py).
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from orch.model.events import ProcessExited
from orch.model.generation import Generation
from orch_policies.classification import advice, describe
from orch_policies.gang import stragglers
from orch_policies.restart import Decision
from orch_workers.checkpoint.chain import tuple_of
from orch_workers.checkpoint.errors import Superseded
from orch_workers.config import WorkerConfig
from orch_workers.ending import Homecoming
from orch_workers.exits import Exit
from orch_workers.gang.files import LeaderFilesKeeper, OtherFilesKeeper
from orch_workers.gang.keeper import GangKeeper
from orch_workers.gang.leader import AGREE_SHARE, Leader
from orch_workers.gang.leader_keeper import LeaderKeeper, known_bad
from orch_workers.gang.member import Member, first_report
from orch_workers.gang.rendezvous import fresh_port, lane_of
from orch_workers.gang.sharing import KINDS, Sharing
from orch_workers.gang.steptime import StepTime
from orch_workers.gang.words import (
    FAILED,
    IDLE,
    KILLED,
    OVER,
    SUCCEEDED,
    UP,
    End,
    Leave,
    Place,
    Point,
    Report,
    Rollback,
    Save,
    Say,
    Start,
)
from orch_workers.hangs import Hang
from orch_workers.judging import restart_decided
from orch_workers.keeper import Keeper
from orch_workers.process.launch import Launcher
from orch_workers.reports import Reports
from orch_workers.worker import Worker

ALONE_SHARE = AGREE_SHARE + 0.1
"""Part of the time for leaving after which a rank that hears nothing from its leader leaves by itself."""
SILENT_S = 60.0
"""So long after others have begun to train a rank that has not said hello is said to keep nothing."""


class GangWorker(Worker):
    """See Worker. `say` sends a message to another rank's agent, `address` is how they reach this machine."""

    def __init__(
        self,
        config: WorkerConfig,
        reports: Reports,
        secrets: Callable[[], Mapping[str, str]],
        *,
        give_up: Callable[[], None],
        say: Say,
        address: str,
    ) -> None:
        super().__init__(config, reports, secrets, give_up=give_up)
        devices = os.environ.get("CUDA_VISIBLE_DEVICES") if config.gpus else None
        node = "/".join(filter(None, (socket.gethostname(), config.share)))
        first = first_report(
            config.attempt, config.placed_by, config.rank, Place(node=node, address=address, devices=devices)
        )
        self._member = Member(first, self, say, config.world_size, starts_settled=bool(config.files))
        self._sharing = Sharing(config.rank, config.world_size, say)
        self._holdings: GangKeeper | LeaderFilesKeeper | None = None
        if config.rank == 0:
            self._leader = Leader(config.attempt, config.placed_by, config.world_size, self, fresh_port)
            self._member.lead(self._leader)
        self._saves_wanted = self._port = 0
        self._step_time = StepTime()
        self._succeeded: Exit | None = None
        self._hang_step: int | None = None
        self._told_to_leave = self._finishing = False
        self._alone_at_s: float | None = None
        self._stop_by_s = 0.0
        self._is_first_here = config.rank == 0
        self._uneven_since_s: float | None = None

    # from other threads

    def start(self) -> None:
        super().start()
        self._member.start()

    def heard(self, document: Mapping[str, Any]) -> None:
        """A message from another agent of this job."""
        if document.get("kind") in KINDS:
            self._sharing.heard(document)
        else:
            self._member.heard(document)

    def retire(self, limit_s: float) -> None:
        """Another worker takes over in this very process: nothing of this one goes on when this returns."""
        self._member.close(limit_s)
        self._retired = True
        self.halt()
        self._inbox.put(lambda: None)
        self._thread.join(limit_s)
        self._close()
        if self._holdings is not None:
            self._holdings.join(limit_s)

    def take_over_stop(self, before: GangWorker) -> None:
        """The worker before this one was told to end, and had not ended: that goes for this one."""
        if before._stop.was_asked:
            self._stop = before._stop
            self.stopping = self._stop.asked
            self._inbox.put(lambda: self._on_stop(self._stop.outcome, 0.0))

    def save_soon(self) -> None:
        self._saves_wanted += 1
        self._member.tell(wants_save=self._saves_wanted)

    # set-up

    def _make_keeper(self, secrets: Mapping[str, str]) -> Keeper:
        files = bool(self._config.files)
        of_leader = LeaderFilesKeeper if files else LeaderKeeper
        kind = of_leader if self._config.rank == 0 else OtherFilesKeeper if files else GangKeeper
        talk: dict[str, Any] = {"changed": self._member.poke, "sharing": self._sharing}
        self._holdings = kind(self._config, secrets, **talk, **self._of_keeper())
        return self._holdings

    def _ready(self) -> None:
        assert self._launcher is not None
        assert self._holdings is not None
        self._launcher.never_skips = True
        self._port = self._fresh_port()
        self._member.tell(port=self._port)
        self._member.ready(self._holdings)

    # member.Rank: called by the gang's thread

    def look(self) -> dict[str, Any]:
        launcher = self._launcher
        if launcher is None:
            return {}
        running = launcher.running
        return {
            "listens": launcher.said_hello and running,
            "step": launcher.progress().step if launcher.said_hello else 0,
            "step_s": self._step_time.step_s,
            "waits": launcher.waits_for_slot,
        }

    def begin(self, start: Start) -> None:
        self._inbox.put(lambda: self._begin(start))

    def end(self, generation: Generation) -> None:
        def act() -> None:
            if self._awaiting_exit and self._generation <= generation and self._launcher is not None:
                self._launcher.end_process()

        self._inbox.put(act)

    def roll_back(self, rollback: Rollback) -> None:
        keeper, launcher = self._holdings, self._launcher
        if isinstance(keeper, GangKeeper) and launcher is not None:
            keeper.leave_behind(rollback)
            launcher.leave_out = (tuple_of(rollback.generation), rollback.until_step)

    def save_at(self, save: Save) -> None:
        def act() -> None:
            sure = self._launcher is not None and self._launcher.save_at(save.step, hold=save.hold)
            self._member.tell(**{"placed_word" if sure else "passed_word": save.number})

        self._inbox.put(act)

    def leave(self, leave: Leave) -> None:
        self._inbox.put(lambda: self._leave(leave))

    def finish(self) -> None:
        """Every rank's process has ended with success; of the leader: and every other rank is over."""
        self._inbox.put(self._finish)

    def hold_on(self, *, waits: bool) -> None:
        self._gang_waits = waits

    # leader.Hands: called by the gang's thread, of the leader alone

    def find(self, generation: Generation, reports: Mapping[int, Report], refused: Sequence[Point]) -> None:
        keeper = self._holdings
        assert isinstance(keeper, (LeaderKeeper, LeaderFilesKeeper))

        def answer(candidates: Any, everywhere: bool) -> None:
            self._leader.found(generation, candidates, everywhere=everywhere)
            self._member.poke()

        def failed(error: Exception) -> None:
            def act() -> None:
                if not isinstance(error, Superseded):
                    raise error  # in the worker's loop it becomes an end, as any error there
                self._on_superseded(str(error))

            self._inbox.put(act)

        keeper.find(generation, reports, refused, answer, failed)

    def decide(self, rank: int, end: End, following: Generation) -> Decision:
        failure = end.classified()
        judged = failure.kind == "hang"
        decision = self._ledger.decide(failure, str(end.generation))
        self._reports.add(
            ProcessExited(
                generation=end.generation,
                rank=rank,
                code=end.code,
                signal=end.signal,
                step=failure.step if judged else end.step,
                evidence="its agent ended it" if judged else end.evidence,
                cause=failure.cause or ("hang" if judged else ""),
                what=describe(failure) if judged else end.what,
                advice=advice(failure) if judged else end.advice,
                detect_s=max(0.0, (time.time_ns() // 1000 - end.at_us) / 1e6),
            ),
            traceback=end.traceback,
            poisoned=known_bad(self._holdings, end),
        )
        decision = replace(decision, reason=f"rank {rank}: {decision.reason}")
        if decision.action != "fail":
            # In the journal on disk before it is acted on: write down, then act.
            self._reports.add(restart_decided(following, failure, decision, end.step))
        return decision

    def fail(self, rank: int, end: End, reason: str) -> None:
        if end.stretch is not None and isinstance(self._holdings, LeaderKeeper):
            following = Generation(end.generation.attempt, end.generation.restart + 1)
            self._holdings.leave_behind(Rollback(generation=following, **end.stretch))
            self._holdings.mark_soon()
        self._inbox.put(
            lambda: self._end("failed", reason, exit_code=end.code, traceback=end.error, step=end.step)
        )

    def unrestorable(self, why: str) -> None:
        self.on_unrestorable(f"none of the job's states can be restored by all ranks: {why}")

    # the worker's loop

    def _begin(self, start: Start) -> None:
        if self.stopping.is_set() or self._awaiting_exit or not self._member.begins(start.generation):
            return
        seat = start.seats[self._config.rank]
        self._is_first_here = seat.local_rank == 0
        assert self._launcher is not None
        self._launcher.seat = {
            "local_rank": seat.local_rank,
            "local_world_size": seat.local_world_size,
            "master_addr": start.master_addr,
            "master_port": start.master_port,
            "peers": start.peers,
            "base": {} if seat.devices is None else {"CUDA_VISIBLE_DEVICES": seat.devices},
        }
        self._succeeded, self._hang_step, self._step_time = None, None, StepTime()
        self._start_process(start.generation)

    def _after(self, ended: Exit) -> None:
        assert self._keeper is not None
        self._keeper.process_gone(well=ended.code == 0)
        if self.stopping.is_set():
            self._end(
                self._stop.outcome,
                self._stop.reason or "left when told to",
                exit_code=ended.code,
                step=ended.step,
            )
            return
        at_us = time.time_ns() // 1000 - (time.monotonic_ns() - ended.at_ns) // 1000
        end = End(
            generation=self._generation,
            how=SUCCEEDED if ended.succeeded else KILLED,
            at_us=at_us,
            code=ended.code,
            signal=ended.signal,
            step=ended.step if ended.known else None,
        )
        if ended.succeeded:
            self._succeeded = ended
        elif self._judge.condemned or not self._member.is_ended(self._generation):
            end = self._explained(ended, end)
        self._port = self._fresh_port()
        self._member.tell(phase=IDLE, end=end, hang=None, port=self._port)

    def _fresh_port(self) -> int:
        return fresh_port(self._port, lane_of(self._config.rank))

    def _explained(self, ended: Exit, end: End) -> End:
        assert self._keeper is not None
        ended = ended.standing_at(
            self._keeper.failed_at(ended.step if ended.known else None, ended.code, ended.signal)
        )
        found = self._judge.judge(ended.failure(self._fatal), self._log.redactor)
        condemned_for_loss = found.failure.kind == "bad_numbers"
        return replace(
            end,
            how=FAILED,
            step=found.failure.step,
            failure=found.failure.to_dict(),
            what=found.what,
            advice=found.advice,
            evidence=found.evidence,
            traceback=found.traceback,
            error=found.error,
            stretch=self._losses.stretch._asdict() if condemned_for_loss and self._losses.stretch else None,
        )

    def _on_hang(self, hang: Hang) -> None:
        """Every rank's stacks come into its log by its own verdict; the leader waits for all of them."""
        self._hang_step = self._launcher.progress().step if self._launcher is not None else None
        self._member.tell(hang=hang.failure.to_dict())

    def _save_when_due(self, launcher: Launcher, step: int) -> None:
        if self._config.rank == 0 and launcher.due(step) is not None:
            self._leader.save()
            self._member.poke()

    def _tick(self) -> None:
        super()._tick()
        launcher = self._launcher
        if launcher is None or not self._awaiting_exit:
            return
        self._say_who_keeps_nothing()
        progress = launcher.progress()
        self._step_time.look(progress.step, progress.monotonic_ns)
        if self._hang_step is not None and progress.step > self._hang_step:
            self._hang_step = None
            self._member.tell(hang=None)
        if self._alone_at_s is not None and time.monotonic() >= self._alone_at_s and not self._told_to_leave:
            self._alone_at_s = None
            launcher.stop(max(0.0, self._stop_by_s - time.monotonic()))

    def _say_who_keeps_nothing(self) -> None:
        """Where only some ranks call orch.training, no step is ever complete."""
        reports = self._member.standing() if self._config.rank == 0 and not self._config.files else []
        silent = [report.rank for report in reports if report.phase == UP and not report.listens]
        now_s = time.monotonic()
        if not silent or not any(report.listens for report in reports):
            self._uneven_since_s = None
        elif self._uneven_since_s is None:
            self._uneven_since_s = now_s
        elif now_s - self._uneven_since_s > SILENT_S and self._awaiting_exit:
            self.note(
                f"rank {silent[0]} does not call orch.training() and others do: no checkpoint can be made, because a "
                "checkpoint is what all ranks have saved at one step"
            )

    def _state(self) -> dict[str, Any]:
        """The leader tells of all ranks how fast they are, and who is slower than the others."""
        found = super()._state()
        if self._config.rank:
            return found
        reports = self._member.standing()
        slow = stragglers({report.rank: report.step_s for report in reports if report.step_s})
        ranks = [
            {
                "rank": report.rank,
                "host": report.place.node,
                "step": report.step if report.listens else None,
                "step_s": None if report.step_s is None else round(report.step_s, 6),
                "slower": round(slow[report.rank], 2) if report.rank in slow else None,
            }
            for report in reports
        ]
        return {**found, "usage": {**found["usage"], "ranks": ranks}}

    # the end

    def _on_stop(self, outcome: str, grace_s: float) -> None:
        if self._finishing:
            return
        launcher = self._launcher
        if launcher is None or not self._awaiting_exit:
            self._end(outcome, self._stop.reason or "stopped before a training process ran")
        elif grace_s <= 0:
            launcher.stop(0)
            self._member.farewell(outcome, self._stop.reason, 0.0)
        elif not self._told_to_leave:
            now_s = time.monotonic()
            self._stop_by_s = now_s + grace_s
            self._alone_at_s = now_s + grace_s * ALONE_SHARE
            self._member.farewell(outcome, self._stop.reason, grace_s)

    def _leave(self, leave: Leave) -> None:
        if self._finishing or self._told_to_leave:
            return
        self._told_to_leave = True
        left_s = leave.left_s
        if self.stopping.is_set():
            left_s = max(0.0, self._stop_by_s - time.monotonic())
        else:
            self._stop.ask("left", leave.reason, time.monotonic() + leave.left_s)
        if self._launcher is None or not self._awaiting_exit:
            self._end(self._stop.outcome, self._stop.reason)
        else:
            self._launcher.stop(left_s, leave.step)

    def _finish(self) -> None:
        self._finishing = True
        done = self._succeeded
        if done is None:  # cannot be: the leader has seen every rank's success
            raise RuntimeError("told to finish, and the process has not ended with success")
        self._end("succeeded", done.why_succeeded, exit_code=done.code, step=done.step)

    def _bring_home(self, outcome: str) -> str:
        reason = super()._bring_home(outcome)
        if self._finishing and self._config.rank == 0 and self._succeeded is not None:
            # Only now: until all is in storage, whoever comes after a lost rank had better train the end again.
            self._note_success(self._succeeded.step)
        return reason

    def _end(self, outcome: str, reason: str, **more: Any) -> None:
        super()._end(outcome, reason, **more)
        if self._ended:
            self._member.tell(phase=OVER, outcome=outcome)

    def _homecoming(self, *, patient: bool) -> Homecoming:
        """Ranks of one machine share its working folder: its first rank brings the outputs home. What other machines
        than rank 0's have made comes below a folder of their own.
        """
        config = self._config if self._is_first_here else replace(self._config, outputs=())
        below = "" if config.rank == 0 else f"rank-{config.rank}"
        return Homecoming(
            config,
            patient=patient,
            stop=self._stop,
            halted=lambda: self._halted,
            note=self.note,
            below=below,
        )
