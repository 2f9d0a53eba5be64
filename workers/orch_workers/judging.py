"""A training process has ended: gathers what shows why, and puts it and what was decided into words."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from orch.model.events import ProcessExited, RestartDecided
from orch.model.generation import Generation
from orch_policies.classification import Failure, advice, classified, describe
from orch_policies.restart import Decision
from orch_workers.logs.redaction import Redactor
from orch_workers.logs.worker_log import last_lines, last_traceback, tail
from orch_workers.process.evidence import OomWatch

OUTPUT_TAIL_BYTES = 64 << 10


class Judgement(NamedTuple):
    failure: Failure
    """Classified, and without the output."""
    what: str
    """What happened, as a sentence without its full stop."""
    advice: str
    evidence: str
    """How it was seen."""
    traceback: str | None
    error: str | None
    """The traceback, else the end of the output."""


class Judge:
    """Used by the worker's loop alone. One process after the other: `began`, `look`, `judge`."""

    def __init__(self, log_path: Path) -> None:
        self._log_path = log_path
        self._oom = OomWatch()
        self._condemned: Failure | None = None

    def began(self, pid: int) -> None:
        self._condemned = None
        self._oom.begin(pid)

    def look(self, pids: Collection[int]) -> None:
        """Who belongs to its tree now."""
        self._oom.look(pids)

    def condemn(self, failure: Failure) -> None:
        """The agent itself ends the process, for this reason: its exit status says nothing then. The first stays."""
        self._condemned = self._condemned or failure

    @property
    def condemned(self) -> bool:
        return self._condemned is not None

    def judge(self, seen: Failure, redactor: Redactor) -> Judgement:
        """`seen`: kind, exit status, step and message."""
        log_tail = tail(self._log_path, OUTPUT_TAIL_BYTES, redactor)
        evidence = f"exit code {seen.exit_code}" if seen.signal is None else f"signal {seen.signal}"
        evidence += ", reported by wait"
        failure = replace(seen, output_tail=log_tail, oom=self._oom.found())
        self._oom.close()
        if self._condemned is not None:
            failure, evidence = (
                replace(self._condemned, step=self._condemned.step or seen.step),
                "its agent ended it",
            )
        elif failure.oom:
            evidence += f"; {failure.oom}"
        found = last_traceback(log_tail)
        return Judgement(
            classified(failure),
            describe(failure),
            advice(failure),
            evidence,
            found,
            found or last_lines(log_tail),
        )


def exited(generation: Generation, rank: int, seen: Failure, found: Judgement, at_ns: int) -> ProcessExited:
    """`at_ns`: when nothing of it was left (CLOCK_MONOTONIC)."""
    return ProcessExited(
        generation=generation,
        rank=rank,
        code=seen.exit_code,
        signal=seen.signal,
        step=seen.step,
        evidence=found.evidence,
        cause=found.failure.cause,
        what=found.what,
        advice=found.advice,
        detect_s=max(0.0, (time.monotonic_ns() - at_ns) / 1e9),
    )


def restart_decided(
    following: Generation, failure: Failure, decision: Decision, step: int | None
) -> RestartDecided:
    return RestartDecided(
        generation=following,
        reason=decision.reason,
        charge_to=decision.charge_to,
        delay_s=decision.delay_s,
        step=step,
        failure=failure.to_dict(),
    )
