"""Watches one training process for a hang: how long there was no step, and whether anything in it still moves."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from orch_policies.classification import Failure
from orch_policies.hang import Learned, Limit, Phase, Rule, action, limit
from orch_workers.process.stacks import Stacks
from orch_workers.training.page import Progress

if TYPE_CHECKING:
    from orch_workers.process.launch import Launcher

LOOKS = 3
LOOKS_APART_S = 5.0
SAYS_SO_AFTER_S = 300.0
"""A process that has told no step for so long is said not to be watched."""


@dataclass(frozen=True)
class Hang:
    """The process is to be ended: why, and the stacks for the attempt's log."""

    failure: Failure
    stacks: str


class HangWatch:
    """Used by the worker's loop, which `look`s often; only the stacks are read in a thread of their own."""

    def __init__(
        self,
        rule: Rule,
        read_stacks: Callable[[Sequence[int]], Stacks],
        note: Callable[[str], None],
        clock_ns: Callable[[], int] = time.monotonic_ns,
        looks_apart_s: float = LOOKS_APART_S,
    ) -> None:
        self._rule, self._read_stacks, self._note, self._clock_ns = rule, read_stacks, note, clock_ns
        self._apart_s = looks_apart_s
        self.learned = Learned()
        self._began_ns = self._last_ns = 0
        self._step: int | None = None
        self._phase: Phase = "starting"
        self._looking: _Looking | None = None
        self._said_so = False
        self._waits_for = ""

    def look_at(
        self, launcher: Launcher, restored_step: int, *, finished: bool, saving: bool = False
    ) -> Hang | None:
        """`saving`: another rank of the gang waits for a slot, and this one for that rank."""
        beat, stands = launcher.beat(), launcher.progress()
        # Of a script that tells nothing itself lines of its log and versions of its files are counted together.
        self._waits_for = "" if beat == stands else f"a sign of progress after version {stands.step}"
        hang = self.look(
            beat,
            restored_step=restored_step,
            saving=saving or launcher.waits_for_slot,
            finished=finished,
            pids=launcher.pids,
        )
        if hang is None:
            return None
        return replace(hang, failure=replace(hang.failure, step=stands.step))

    def began(self) -> None:
        """A process was started."""
        self._began_ns = self._last_ns = self._clock_ns()
        self._step, self._phase = None, "starting"
        self._forget_look()

    def look(
        self,
        progress: Progress | None,
        *,
        restored_step: int,
        saving: bool,
        finished: bool,
        pids: Callable[[], Sequence[int]],
    ) -> Hang | None:
        """`progress`: None while it has told no step at all. `saving`: training waits for a slot, not: it fills one."""
        now_ns = self._clock_ns()
        if progress is None:
            self._say_that_it_is_not_watched(now_ns)
            return None
        self._follow(progress, restored_step, now_ns, saving=saving, finished=finished)
        if self._looking is not None:
            return self._outcome(now_ns)
        found = limit(self._rule, self.learned, self._phase)
        what = action(found, (now_ns - self._last_ns) / 1e9)
        if what != "wait":
            self._looking = _Looking(
                self._read_stacks, list(pids()), found, LOOKS if what == "look" else 1, self._apart_s
            )
        return None

    def _follow(
        self, progress: Progress, restored_step: int, now_ns: int, *, saving: bool, finished: bool
    ) -> None:
        known = restored_step if self._step is None else self._step
        if progress.step > known:
            starting = self._phase == "starting"
            since_ns = self._began_ns if starting else self._last_ns
            at_ns = max(self._last_ns, progress.monotonic_ns)
            self.learned = self.learned.paused((at_ns - since_ns) / 1e9, starting=starting)
            self._step, self._last_ns, self._phase = progress.step, at_ns, "stepping"
            self._forget_look()
        if saving:
            self._last_ns = now_ns  # storage's time, not the script's
            self._forget_look()
        if finished:
            self._phase = "ending"

    def _forget_look(self) -> None:
        if self._looking is not None:
            self._looking.give_up()
            self._looking = None

    def _outcome(self, now_ns: int) -> Hang | None:
        looking = self._looking
        assert looking is not None
        if not looking.done:
            return None
        self._looking = None
        quiet_s = (now_ns - self._last_ns) / 1e9
        if looking.moves and not looking.limit.final:
            self.learned = self.learned.busy()
            longer = limit(self._rule, self.learned, self._phase)
            self._note(
                f"no step for {quiet_s:.0f} s, and the process is busy (its stacks change): it is waited for until "
                f"{longer.seconds:.0f} s"
            )
            return None
        self.learned = self.learned.hung()
        where = self._waits_for or f"the step after {self._step}"
        where = "its first step" if self._phase == "starting" else where
        message = (
            f"no progress for {quiet_s:.0f} s, waiting for {where} (limit {looking.limit.seconds:.0f} s: "
            f"{looking.limit.reason}); {looking.sentence}"
        )
        return Hang(Failure("hang", step=self._step, message=message), looking.text)

    def _say_that_it_is_not_watched(self, now_ns: int) -> None:
        if self._rule == "off" or self._said_so or (now_ns - self._began_ns) / 1e9 < SAYS_SO_AFTER_S:
            return
        self._said_so = True
        self._note("a hang would not be seen: the script tells no step (it does not use `import orch`)")


class _Looking:
    """Reads the stacks several times, a moment apart: does anything change?"""

    def __init__(
        self,
        read: Callable[[Sequence[int]], Stacks],
        pids: Sequence[int],
        found: Limit,
        times: int,
        apart_s: float,
    ) -> None:
        self.limit = found
        self._read, self._pids, self._times, self._apart_s = read, pids, times, apart_s
        self._seen: list[Stacks] = []
        self._given_up = threading.Event()
        self._thread = threading.Thread(target=self._run, name="stacks", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        for number in range(self._times):
            if number and self._given_up.wait(self._apart_s):
                return
            self._seen.append(self._read(self._pids))

    def give_up(self) -> None:
        self._given_up.set()

    @property
    def done(self) -> bool:
        return not self._thread.is_alive()

    def wait(self, limit_s: float) -> bool:
        """Until it is done; for tests."""
        self._thread.join(limit_s)
        return self.done

    @property
    def moves(self) -> bool:
        """Unknown counts as moving: what cannot be seen is no evidence. A stopped process does not move."""
        if any(stacks.stopped for stacks in self._seen):
            return False
        known = {stacks.frames for stacks in self._seen}
        return None in known or len(known) > 1 or not self._seen

    @property
    def sentence(self) -> str:
        stopped = sorted({pid for stacks in self._seen for pid in stacks.stopped})
        if stopped:
            return f"process {', '.join(map(str, stopped))} is stopped by a signal"
        if not any(stacks.frames for stacks in self._seen):
            return "its stacks could not be read"
        if len(self._seen) == 1:
            return "its stacks are in the log"
        return (
            "its stacks changed, and are in the log"
            if self.moves
            else "its stacks stood still, and are in the log"
        )

    @property
    def text(self) -> str:
        return self._seen[-1].text if self._seen else ""
