"""Gangs whose script keeps its own files: rank 0 writes them, as scripts for torchrun do, and every rank reads them.

Rank 0's keeper does what it does for a job of one worker. The gang adds one thing: no process of any rank is started
before the files are in their place.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from orch.model.generation import Generation
from orch_workers.checkpoint.chain import Chain, tuple_of
from orch_workers.checkpoint.errors import CheckpointError, StorageError, StorageRefused
from orch_workers.files.keeper import KEPT_TWICE, FilesKeeper
from orch_workers.gang.keeper import GangKeeper
from orch_workers.gang.leader import Candidate
from orch_workers.gang.sharing import Sharing
from orch_workers.gang.words import Point, Proposal, Report
from orch_workers.prepared import Prepared
from orch_workers.speaking import Launched


class Deferred:
    """A launcher that is told what was restored only when its process is started."""

    def __init__(self, launcher: Launched) -> None:
        self._launcher = launcher
        self._restored: tuple[int, str, float] | None = None

    @property
    def workdir(self) -> Path:
        return self._launcher.workdir

    def pids(self) -> list[int]:
        return self._launcher.pids()

    def tell_metrics(self, step: int, values: Mapping[str, Any]) -> None:
        self._launcher.tell_metrics(step, values)

    def tell_restored(self, step: int, source: str, seconds_s: float) -> None:
        self._restored = (step, source, seconds_s)

    def begins(self) -> None:
        if self._restored is not None:
            self._launcher.tell_restored(*self._restored)


class LeaderFilesKeeper(FilesKeeper):
    """Of rank 0. Thread-safe."""

    def __init__(self, *arguments: Any, changed: Callable[[], None], sharing: Sharing, **named: Any) -> None:
        """`sharing` is for those whose ranks all write a part."""
        super().__init__(*arguments, **named)
        self._changed = changed
        self._deferred: Deferred | None = None

    def attach(self, launcher: Launched) -> None:
        self._deferred = Deferred(launcher)
        super().attach(self._deferred)

    # what the gang's talk asks of a keeper; there is nothing here that another rank would have a part of

    def holds(self) -> tuple[Point, ...]:
        return ()

    def written(self) -> tuple[Point, ...]:
        return ()

    def lineage(self) -> dict[str, Any] | None:
        return None

    @property
    def newest_commit(self) -> Point | None:
        return None

    def heard(self, report: Report) -> None:
        """Nothing depends on it."""

    def committed(self, point: Point) -> None:
        """It commits by itself."""

    def settle(self, generation: Generation, nothing: bool) -> None:
        """The files are in their place since `propose`."""

    def find(
        self,
        generation: Generation,
        reports: Mapping[int, Report],
        refused: Sequence[Point],
        answer: Callable[[list[Candidate], bool], None],
        failed: Callable[[Exception], None],
    ) -> None:
        """What is restored is found when it is put in its place; here only whether every rank will see it there."""
        away = [rank for rank, report in reports.items() if report.place.node != reports[0].place.node]
        if away and self._config.code_digest is not None:
            failed(
                StorageRefused(
                    f"checkpoint.files: rank {away[0]} is on another machine than rank 0 and would not see the files "
                    "that are put back there; use `ship: never` with a folder that all machines share, or workers "
                    "that fit on one machine"
                )
            )
            return
        answer([Candidate(None, Chain.root(tuple_of(generation)).to_json())], True)

    def propose(self, proposal: Proposal, answer: Callable[[str], None]) -> None:
        """Puts the newest version in its place, and answers then."""

        def put() -> None:
            why = ""
            try:
                super(LeaderFilesKeeper, self).start_generation(proposal.generation)
            except InterruptedError:
                return
            except (CheckpointError, StorageError, OSError) as error:
                why = str(error)
            answer(why)

        threading.Thread(target=put, name="files", daemon=True).start()

    def start_generation(self, generation: Generation) -> None:
        """The files are there; the process is started now."""
        assert self._deferred is not None
        self._deferred.begins()


class OtherFilesKeeper(GangKeeper):
    """Of the other ranks: keeps nothing."""

    def prepared(self) -> Prepared | None:
        raise CheckpointError(KEPT_TWICE)
