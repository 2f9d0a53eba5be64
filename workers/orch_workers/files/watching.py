"""Watches a job's files while its script runs, and has each version taken as soon as the script is done with it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Protocol

from orch_workers.files.collecting import Outcome
from orch_workers.files.looking import Look, Looker
from orch_workers.files.matching import TooManyError
from orch_workers.files.settling import LOOK_EVERY_S, Settling

COPY_SHARE_MAX = 0.1
"""The part of the time that copying may take: a script that saves all the time has only some of its versions taken."""
TROUBLE_PAUSE_S = 5.0
PROBLEM_SAID_S = 30.0
"""A set that is settled and is not whole is said to be so when it stays for so long."""

log = logging.getLogger(__name__)


class Owner(Protocol):
    """The keeper. Called from the watching thread."""

    def take_version(self, look: Look) -> Outcome: ...
    def each_look(self, look: Look) -> None: ...
    def told(self, message: str) -> None: ...


class Watch:
    """One start of the command, from the constructor to `stop`."""

    def __init__(self, looker: Looker, owner: Owner, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._looker, self._owner, self._monotonic = looker, owner, monotonic
        self._stopping = threading.Event()
        self._not_before_s = 0.0
        self._problem: tuple[str, float] | None = None
        self.settling = Settling()
        self.settling.began(looker.look().files, monotonic())
        self._thread = threading.Thread(target=self._run, name="files", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Returns when nothing is looked at or copied any more."""
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        pause_s = LOOK_EVERY_S
        while not self._stopping.wait(pause_s):
            began_s = self._monotonic()
            try:
                self._look()
            except TooManyError as error:
                self._owner.told(str(error))
            except OSError as error:
                self._owner.told(f"no copy of the files can be taken for now: {error}")
            except Exception:
                log.exception("the job's files could not be looked at")
            else:
                pause_s = self.settling.pause_s(self._monotonic() - began_s)
                continue
            pause_s = TROUBLE_PAUSE_S

    def _look(self) -> None:
        look = self._looker.look(calm=self.settling.taken)
        now_s = self._monotonic()
        self._owner.each_look(look)
        changed_ns = max((one.changed_ns for one in look.files.values()), default=0)
        age_s = (time.time_ns() - changed_ns) / 1e9
        ready = self.settling.look(look.files, writing=bool(look.writing), now_s=now_s, age_s=age_s)
        if self._problem is not None and now_s - self._problem[1] > PROBLEM_SAID_S:
            self._owner.told(f"no version of its files is taken: {self._problem[0]}")
            self._problem = None
        if not ready or now_s < self._not_before_s:
            return
        outcome = self._owner.take_version(look)
        took_s = self._monotonic() - now_s
        self._not_before_s = now_s + took_s / COPY_SHARE_MAX
        if outcome.snapshot is not None:
            self.settling.took(look.files)
            self._problem = None
        elif outcome.problem:
            self.settling.took(look.files)
            self._problem = self._problem or (outcome.problem, now_s)
