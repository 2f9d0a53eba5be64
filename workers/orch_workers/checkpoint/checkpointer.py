"""Checkpoints for a plain script, without orch: the same engine, the same format, on any storage.

>>> import numpy as np
>>> from orch_workers.checkpoint import Checkpointer
>>> weights = np.zeros(3)
>>> with Checkpointer("checkpoints/demo", keep=2) as checkpoints:
...     found = checkpoints.restore({"weights": weights})
...     for step in range(1 if found is None else found.step + 1, 4):
...         weights += 1
...         checkpoints.save(step, {"weights": weights}, metrics={"loss": 1 / step})

The same lines in a second process go on from there:

>>> weights = np.zeros(3)
>>> with Checkpointer("checkpoints/demo", keep=2) as checkpoints:
...     found = checkpoints.restore({"weights": weights})
...     print(found.step, weights, [one.step for one in checkpoints.list()])
3 [3. 3. 3.] [3, 2]

See docs/checkpointer.md.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from queue import Queue
from typing import TYPE_CHECKING, Any, Self, TypeVar

from orch_policies.retention import Rules
from orch_workers.checkpoint.catalog import Catalog, RestorePoint
from orch_workers.checkpoint.chain import Chain, Generation
from orch_workers.checkpoint.errors import (
    AlreadyExists,
    CheckpointError,
    Damaged,
    Rejected,
    StorageError,
    StorageUnavailable,
    Superseded,
)
from orch_workers.checkpoint.format import FORMAT_VERSION, sealed
from orch_workers.checkpoint.listing import Listed, find_point, list_checkpoints
from orch_workers.checkpoint.location import split_location
from orch_workers.checkpoint.memory import MemorySlot, scratch_slot
from orch_workers.checkpoint.reader import find_and_restore, restore
from orch_workers.checkpoint.retaining import Retainer
from orch_workers.checkpoint.state import State, capture, check_names, load
from orch_workers.checkpoint.storage import open_storage
from orch_workers.checkpoint.verifying import Verified, verify
from orch_workers.checkpoint.writer import commit
from orch_workers.training.slots import format_generation

if TYPE_CHECKING:
    from types import TracebackType

KEEP = 5
PATIENCE_S = 60.0
RETRY_MIN_S, RETRY_MAX_S = 0.2, 10.0
SLOTS_IN_BACKGROUND = 2
"""Copies of the state in memory: one that is being written, one that is being filled."""
CLAIMS_MAX = 100
"""Generations that others take in the moment in which this one wants to; then something is wrong."""

_log = logging.getLogger("orch.checkpoint")
T = TypeVar("T")


@dataclass(frozen=True)
class Loaded:
    """What `Checkpointer.restore` found. `values`: by name, what was not loaded into an object in place.
    `rejected`: newer checkpoints that were damaged and were put into quarantine on the way.
    """

    step: int
    epoch: int | None
    metrics: Mapping[str, Any]
    generation: str
    values: Mapping[str, Any]
    rejected: tuple[Rejected, ...] = ()


class Checkpointer:
    """Saves and restores the state of one training at `url`, whose last part is its name: `s3://bucket/runs/digits`,
    `checkpoints/digits`. Nothing is read or written before it is used. Not for several threads.

    keep: how many of the newest stay, or Rules. background: `save` returns after the copy in memory, and a thread
    writes; `wait`, or leaving the `with` block, waits for it. options: what fsspec takes, such as endpoint_url.
    env: where AWS_* are looked up, by default the process's own environment. patience_s: how long storage that is
    away is tried before its error is raised. start_over: save from nothing although there are checkpoints.
    unfenced: use a storage that cannot refuse to overwrite; then nothing keeps two processes apart.

    Several processes may use one URL; who saves first after restoring goes on alone, and the others get Superseded
    when they save.

    >>> checkpoints = Checkpointer("checkpoints/words")
    >>> checkpoints.save(1, {"vocabulary": {"orch": 1}, "table": [[1.5, float("inf")], (2, b"bytes")]})
    >>> checkpoints.restore().values["table"]
    [[1.5, inf], (2, b'bytes')]
    >>> checkpoints.close()
    """

    def __init__(
        self,
        url: str,
        *,
        keep: int | Rules = KEEP,
        background: bool = False,
        options: Mapping[str, Any] | None = None,
        env: Mapping[str, str] | None = None,
        patience_s: float = PATIENCE_S,
        start_over: bool = False,
        unfenced: bool = False,
    ) -> None:
        prefix, name = split_location(str(url))
        self.rules = Rules(last=keep) if isinstance(keep, int) else keep
        storage = open_storage(prefix, options, os.environ if env is None else env, unfenced=unfenced)
        self.catalog = Catalog(storage, name)
        self.url = f"{storage.url}/{name}"
        self._patience_s, self._start_over = patience_s, start_over
        self._background = background
        self._free: Queue[MemorySlot] = Queue()
        for _ in range(SLOTS_IN_BACKGROUND if background else 1):
            self._free.put(MemorySlot())
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint") if background else None
        self._written: list[Future[None]] = []
        self._chain: Chain | None = None
        self._from: RestorePoint | None = None
        self._seen: Generation | None = None
        self._has_looked = False
        self._saved_step: int | None = None
        self._retainer = Retainer(self.catalog, self.rules)
        self._swept_for: Generation | None = None
        self._is_closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
            return
        with contextlib.suppress(
            Exception
        ):  # the script's own error is the one to be seen; the log has this one
            self.close()

    # saving

    def save(
        self,
        step: int,
        state: State,
        *,
        epoch: int | None = None,
        metrics: Mapping[str, Any] | None = None,
    ) -> None:
        """Saves `state`: by name PyTorch modules, optimizers, whatever has `state_dict`, random generators, arrays,
        tensors, and plain values, nested as they like. Random states of Python, NumPy and torch go with them.

        Returns when it is durable (`background`: when it is copied; both copies busy: it waits for one). `step` must
        rise. Raises UnsupportedStateError for a value that no checkpoint can hold, CheckpointError when there are
        checkpoints that were not restored, Superseded when another process has taken over, and StorageErrors, of
        an earlier save too.
        """
        self._check_open()
        self._raise_failed()
        check_names(state)
        self._check_step(step)
        slot = self._free.get()
        began = time.monotonic()
        try:
            generation = self._generation()
            slot.fill(capture(state, step, epoch, metrics), generation, step)
            blocked_s = time.monotonic() - began
        except BaseException:
            self._free.put(slot)
            raise
        self._saved_step = step
        if self._writer is None:
            self._write(slot, step, blocked_s)
        else:
            future = self._writer.submit(self._write, slot, step, blocked_s)
            future.add_done_callback(lambda done: self._log_failure(done, step))
            self._written.append(future)

    def wait(self) -> None:
        """Returns when everything that was saved is durable. Raises what kept it from that.

        >>> with Checkpointer("checkpoints/waits", background=True) as checkpoints:
        ...     checkpoints.save(1, {"answer": 42})
        ...     checkpoints.wait()
        ...     print([one.step for one in checkpoints.list()])
        [1]
        """
        pending, self._written = self._written, []
        failures = [error for future in pending if (error := future.exception()) is not None]
        if failures:
            raise failures[-1]

    def close(self) -> None:
        """Waits, and gives the memory back. May be called twice."""
        if self._is_closed:
            return
        self._is_closed = True
        try:
            self.wait()
        finally:
            if self._writer is not None:
                self._writer.shutdown()
            while not self._free.empty():
                self._free.get().close()

    def _check_open(self) -> None:
        if self._is_closed:
            raise ValueError(f"the Checkpointer of {self.url} is closed")

    def _check_step(self, step: int) -> None:
        if isinstance(step, bool) or not isinstance(step, int) or step < 0:
            raise ValueError(f"step {step!r} is no whole number from 0 on")
        last = self._saved_step
        if last is not None and step <= last:
            raise ValueError(f"step {step} is not after step {last}, which is saved already")
        if self._from is not None and step < self._from.step:
            raise ValueError(
                f"step {step} is before step {self._from.step}, which was restored: it would not be found"
            )

    def _raise_failed(self) -> None:
        for future in [future for future in self._written if future.done()]:
            self._written.remove(future)
            if (error := future.exception()) is not None:
                raise error

    def _log_failure(self, done: Future[None], step: int) -> None:
        if (error := done.exception()) is not None:
            _log.error("the checkpoint of step %s is not in %s: %s", step, self.url, error)

    def _write(self, slot: MemorySlot, step: int, blocked_s: float) -> None:
        try:
            done = self._patiently(lambda: commit(self.catalog, slot.slot, blocked_s=blocked_s))
            # It is durable; what could not be removed now goes after the next one.
            with contextlib.suppress(StorageError, Damaged):
                self._retainer.after(RestorePoint(done.generation, done.step))
                if self._swept_for != done.generation:
                    self.catalog.sweep(protect=[(done.generation, step)], by=done.generation)
                    self._swept_for = done.generation
        finally:
            self._free.put(slot)

    def _patiently(self, act: Callable[[], T]) -> T:
        deadline, pause_s = time.monotonic() + self._patience_s, RETRY_MIN_S
        while True:
            try:
                return act()
            except StorageUnavailable as error:
                if time.monotonic() + pause_s > deadline:
                    raise
                _log.warning("%s; trying again", error)
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, RETRY_MAX_S)

    # generations

    def _look(self) -> None:
        """Remembers the newest generation there is: if another one begins before this one does, this one is late."""
        self._seen = self.catalog.newest_generation()
        self._has_looked = True

    def _generation(self) -> Generation:
        """This process's own, written down at its first save."""
        if self._chain is None:
            self._chain = self._patiently(self._begin)
        return self._chain.generation

    def _begin(self) -> Chain:
        if not self._has_looked:
            self._look()
        self._assert_free()
        attempt = 1 if self._seen is None else self._seen[0] + 1
        if self._from is None:
            chain = Chain.root((attempt, 1))
        else:
            assert self._seen is not None
            try:
                chain = self.catalog.chain_of(self._seen).fork((attempt, 1), *self._from[:2])
            except ValueError as error:
                raise CheckpointError(
                    f"{self.url}: nothing can be saved after {self._from}: {error}"
                ) from error
        document = {
            "format": "orch-generation",
            "version": FORMAT_VERSION,
            "job": self.catalog.job_id,
            **chain.to_json(),
            # So that two processes never take each other's record for their own.
            "writer": secrets.token_hex(8),
        }
        data = sealed(json.dumps(document, separators=(",", ":"), sort_keys=True).encode())
        try:
            self.catalog.storage.create(self.catalog.generation_path(chain.generation), data)
        except AlreadyExists as error:
            raise self._late() from error
        return chain

    def _assert_free(self) -> None:
        if self.catalog.storage.exists(self.catalog.path("job.json")):
            raise CheckpointError(
                f"{self.url} is a job of orch: it can be read here; to save would take it over from the job"
            )
        if self.catalog.newest_generation() != self._seen:
            raise self._late()
        if self._from is None and not self._start_over and self.catalog.restore_points():
            raise CheckpointError(
                f"{self.url} has checkpoints, and none was restored: call restore() first, or give start_over=True "
                f"to leave them behind"
            )

    def _late(self) -> Superseded:
        return Superseded(
            f"another process has begun to save to {self.url} since this one looked: restore again to take over"
        )

    # restoring

    def restore(
        self, into: State | None = None, *, step: int | None = None, random: bool = True
    ) -> Loaded | None:
        """The newest checkpoint that is whole, or the one of `step`; None when there is none at all.

        into: the objects as they are given to `save` (or some of them); they are loaded in place, and global random
        states are set too unless `random` is False. Without it everything is returned in `values` (modules and
        optimizers as their state dicts), and nothing is touched. What is damaged is put into quarantine and the next
        older taken; NothingRestorable when that leaves none, Damaged when it was asked for by its step.
        CheckpointError when it does not fit `into`: then nothing has been changed. What is saved after that descends
        from what was restored.

        >>> checkpoints = Checkpointer("checkpoints/demo")
        >>> checkpoints.restore(step=2).values
        {'weights': array([2., 2., 2.])}
        >>> checkpoints.close()
        """
        self._check_open()
        if into is not None:
            check_names(into)
        with contextlib.suppress(Exception):  # what failed was logged, and is left behind by this
            self.wait()
        self._patiently(self._look)
        self._from, self._chain, self._saved_step = None, None, None
        with scratch_slot() as make:
            rejected: tuple[Rejected, ...] = ()
            if step is None:
                found = self._patiently(lambda: find_and_restore(self.catalog, 0, make))
                if found is None:
                    return None
                point, path, rejected = found.point, found.path, found.rejected
            else:
                point = self._patiently(lambda: find_point(self.catalog, step))
                _, path = self._patiently(lambda: restore(self.catalog, point, 0, make))
            for bad in rejected:
                _log.warning(
                    "the checkpoint of step %s is damaged, put into quarantine: %s", bad.step, bad.reason
                )
            meta, values = load(path, into, random=random)
        self._from = RestorePoint(point.generation, point.step)
        return Loaded(
            point.step,
            meta.get("epoch"),
            meta.get("metrics") or {},
            format_generation(point.generation),
            values,
            rejected,
        )

    # looking and keeping

    def list(self) -> Sequence[Listed]:
        """Every committed checkpoint, newest first, each with its step, metrics, size and whether it may be restored.

        >>> with Checkpointer("checkpoints/demo") as checkpoints:
        ...     [(one.step, one.metrics) for one in checkpoints.list()]
        [(3, {'loss': 0.3333333333333333}), (2, {'loss': 0.5})]
        """
        return self._patiently(lambda: list_checkpoints(self.catalog, self.rules))

    def verify(self, step: int | None = None, *, deep: bool = True) -> Sequence[Verified]:
        """Whether all checkpoints (or the one of `step`) are what was committed: `is_good`, else `problems`. Deep
        compares every byte with its digest; else only that every object is there with its size.

        >>> with Checkpointer("checkpoints/demo") as checkpoints:
        ...     [found.is_good for found in checkpoints.verify()]
        [True, True]
        """
        points = self.catalog.committed() if step is None else [find_point(self.catalog, step)]
        return [self._verify(point, deep=deep) for point in points]

    def _verify(self, point: RestorePoint, *, deep: bool) -> Verified:
        return self._patiently(lambda: verify(self.catalog, point, deep=deep))

    def pin(self, step: int, note: str = "") -> None:
        """Keeps a checkpoint, whatever `keep` says."""
        self.catalog.pin(find_point(self.catalog, step), note)

    def unpin(self, step: int) -> None:
        """Lets `keep` decide about it again."""
        self.catalog.unpin(find_point(self.catalog, step))
