"""The end of a worker: its newest snapshot and its outputs into storage, for success as long as that takes."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from orch.model.generation import Generation
from orch_workers.checkpoint.errors import CheckpointError, StorageRefused
from orch_workers.config import WorkerConfig
from orch_workers.errors import SecretsUnavailableError, UnbuildableError
from orch_workers.keeper import Keeper
from orch_workers.shipping.code import CodeError
from orch_workers.shipping.deliver import Delivery
from orch_workers.shipping.outputs import OutputsError
from orch_workers.stops import Stop
from orch_workers.written import write_down

DRAIN_LIMIT_S = 20.0
"""How long the newest snapshot may take to reach storage when the job was told to stop."""
DRAIN_SLICE_S = 0.5
OUTPUTS_RETRY_S = 2.0


def end_of(error: Exception, stop: Stop) -> dict[str, Any] | None:
    """What `error` means for its worker, as the fields of its end: an order to stop, or what a person must mend. None:
    a fault of ours.
    """
    match error:
        case InterruptedError():
            return {"outcome": stop.outcome, "reason": stop.reason or str(error)}
        case CheckpointError() | StorageRefused() | CodeError() | SecretsUnavailableError():
            return {"outcome": "blocked", "reason": str(error)}
        case UnbuildableError(outcome=outcome, tail=tail):
            return {"outcome": outcome, "reason": str(error), "traceback": tail or None}
    return None


class Homecoming:
    """`patient`: without an end in time, until a stop is asked for or `halted()`; else within DRAIN_LIMIT_S, or until
    the stop's own deadline where that is later.
    """

    def __init__(
        self,
        config: WorkerConfig,
        *,
        patient: bool,
        stop: Stop,
        halted: Callable[[], bool],
        note: Callable[[str], None],
        below: str = "",
    ) -> None:
        """`below`: the folder in storage that the outputs go to, of a rank whose machine is not rank 0's."""
        self._below = below
        self._config, self._patient = config, patient
        self._stop, self._halted, self._note = stop, halted, note

    def bring(self, keeper: Keeper, workdir: Path, generation: Generation) -> str:
        """Snapshots, then outputs; returns what could not be kept, as the rest of the end's reason."""
        reason = "" if self._until(keeper.drain) else "; its newest snapshot did not reach storage"
        missing = self._deliver(keeper, workdir, generation)
        if missing:
            write_down(self._config.paths.undelivered, {"problems": missing})
            for problem in missing:
                self._note(f"an output could not be brought back: {problem}")
            reason += f"; {len(missing)} outputs are still in {workdir} ({missing[0]})"
        return reason

    def _deliver(self, keeper: Keeper, workdir: Path, generation: Generation) -> list[str]:
        """Outputs that are not in storage, each with its reason."""
        try:
            delivery = Delivery(keeper.catalog, workdir, self._config.outputs, generation, self._below)
        except (OutputsError, OSError) as error:
            return [str(error)]
        self._until(delivery.attempt, OUTPUTS_RETRY_S)
        return delivery.problems

    def _until(self, attempt: Callable[[float], bool], pause_s: float = 0.0) -> bool:
        """Tries in slices."""
        deadline: float | None = None if self._patient else self._deadline()
        while not attempt(DRAIN_SLICE_S):
            if deadline is None and self._stop.asked.is_set():
                deadline = self._deadline()
            if self._halted() or (deadline is not None and time.monotonic() > deadline):
                return False
            time.sleep(pause_s)
        return True

    def _deadline(self) -> float:
        """A machine that was to be gone by now, and is not, may still take what is in memory to storage."""
        return max(time.monotonic() + DRAIN_LIMIT_S, self._stop.until_s or 0.0)
