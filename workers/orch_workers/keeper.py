"""Owns the snapshots of one rank: which one is restored, which ones go to storage, and on which chain they lie.

The training process fills slots; a writer thread takes the newest filled slot to storage and tries again for as
long as storage needs. What is restored is decided from memory and storage together, always on the chain of the
newest generation (DESIGN section 6).
"""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from orch.model.generation import Generation
from orch_policies.retention import Rules
from orch_workers import poison
from orch_workers.checkpoint.catalog import Catalog, RestorePoint
from orch_workers.checkpoint.chain import Chain, tuple_of
from orch_workers.checkpoint.errors import (
    CheckpointError,
    NotFound,
    SnapshotChanged,
    StorageError,
    StorageRefused,
    Superseded,
)
from orch_workers.checkpoint.fencing import confirm
from orch_workers.checkpoint.retaining import Retainer
from orch_workers.checkpoint.staging import RESTORE_INDEX, Given, Snapshot, Staging
from orch_workers.checkpoint.storage import open_storage
from orch_workers.checkpoint.sweeping import Sweeper
from orch_workers.checkpoint.writer import Committed
from orch_workers.config import WorkerConfig
from orch_workers.numbers import Stretch
from orch_workers.pacing import Pacing
from orch_workers.patience import patiently, pause_s
from orch_workers.prepared import Filled, Prepared
from orch_workers.restoring import Search, Stored
from orch_workers.slot_storage import bring_slot, commit_slot
from orch_workers.speaking import Speaking
from orch_workers.training.protocol import IN_MEMORY

T = TypeVar("T")

HURRIED_MAX_S = 1.0
"""Longest pause between two tries while somebody waits for the last snapshot to be in storage."""
COMMITTED_REMEMBERED = 16


class Keeper(Speaking):
    """Thread-safe. `tell(step, generation, size_bytes, seconds_s, extra)` for every commit; `note` for people."""

    def __init__(
        self,
        config: WorkerConfig,
        secrets: Mapping[str, str],
        *,
        tell: Callable[[int, Generation, int, float, dict[str, Any]], None],
        note: Callable[[str], None],
        superseded: Callable[[str], None],
        stopping: threading.Event,
    ) -> None:
        self._config, self._tell, self._note, self._superseded = config, tell, note, superseded
        self._trouble = ""
        self._stopping = stopping
        env = {**config.env, **secrets}
        self.storage = open_storage(config.storage_url, config.storage_options, env, unfenced=config.unfenced)
        self.catalog = Catalog(self.storage, config.job_id)
        self._retainer = Retainer(self.catalog, Rules.from_dict(config.keep))
        self.pacing = Pacing.of(config)
        self._lock = threading.Condition()
        self._staging = self._make_staging()
        self._chain: Chain | None = None  # of the newest generation that has a state
        self._next: Chain | None = None  # of the generation that is starting
        self._begun: Chain | None = None  # the newest that is written down in storage
        self._beginning = threading.Lock()
        self._generation = (config.attempt, 0)
        self._prepared: Prepared | None = None
        self._filled: list[Filled] = []
        self._writing: Filled | None = None
        self._closed = False
        self._committed: set[tuple[tuple[int, int], int]] = set()
        history = dict(config.policy.get("history") or {})
        self._committed_step = int(history.get("committed_step") or 0)
        self._memory_is_newest = False
        self._hurry = False
        self._sweeper = Sweeper(self.catalog)
        self.saved_s, self.saved_step = time.monotonic(), 0
        self._preparer = ThreadPoolExecutor(1, thread_name_prefix="restore")
        self._preparing: Future[Prepared | None] | None = None
        self._writer = threading.Thread(target=self._write_all, name="writer", daemon=True)

    # set-up

    def _make_staging(self) -> Staging:
        paths, rank = self._config.paths, self._config.rank
        fallback, size = paths.job / f"snapshots-{rank}", self._config.world_size
        return Staging(paths.snapshots, rank, fallback=fallback, warn=self._note, world_size=size)

    def open(self) -> None:
        """Finds the chain in storage and in what an earlier agent left here; adopts its newest snapshot.

        Waits for storage that is away unless the newest state is known to lie in this machine's memory.
        """
        local = self._staging.load_lineage()
        # The agent before this one was here and left its chain: nothing newer than its memory can be elsewhere.
        self._memory_is_newest = local is not None and local.generation[0] >= self._config.trusted_from
        self._begun = self._patiently(self.catalog.chain, local if self._memory_is_newest else None)
        if local is not None and self._begun is not None and self._begun.generation > local.generation:
            self._memory_is_newest = False
        if self._begun is not None and self._begun.damage:
            self._note(self._begun.damage)
        known = [chain for chain in (local, self._begun) if chain is not None]
        self._chain = max(known, key=lambda chain: chain.generation, default=None)
        with self._lock:
            self._queue_newest({"reason": "adopted"})
        self._writer.start()

    def _patiently(self, ask: Callable[[], T], instead: object) -> T | None:
        """What storage answers, waited for; None when it is away or refuses and there is something `instead`."""
        return patiently(
            ask, has_instead=instead is not None, trouble=self._set_trouble, stopping=self._stopping
        )

    # one generation after the other

    def start_generation(self, generation: Generation) -> None:
        """Looks for what the process of `generation` will restore while that process starts (`prepared`)."""
        self.pacing.started()
        self._preparing = self._preparer.submit(self._prepare, generation)

    def prepared(self) -> Prepared | None:
        """What `start_generation` found, waited for: a READY slot file, or None when the job never had any state.

        Raises NothingRestorable when there were states and none can be used.
        """
        assert self._preparing is not None
        return self._preparing.result()

    def open_object(self, path: str) -> io.BytesIO:
        """An object of the job's folder in storage, whole; storage that is away is waited for."""
        try:
            data = self._patiently(lambda: self.storage.read(self.catalog.path(path)), None)
        except NotFound as error:
            raise StorageRefused(f"{error}; put it back, or submit the job anew") from error
        assert data is not None
        return io.BytesIO(data)

    def create_object(self, path: str, data: bytes) -> None:
        """Writes a new object; `path` is a whole one (`catalog.path`)."""
        self.storage.create(path, data)

    def _prepare(self, generation: Generation) -> Prepared | None:
        """The newest state on the chain. May wait for storage."""
        with self._lock:
            self._generation = tuple_of(generation)
            chain = self._chain
            memory = None if chain is None else self._staging.newest_ready(chain)
        found = self._newest(chain, memory)
        if found is None:
            self._note("starts from nothing: this job has no checkpoint yet")
        with self._lock:
            if self._prepared is not None:
                self._staging.release(self._prepared.index, "restore")
            if found is not None:
                self._staging.hold(found.index, "restore")
            self._prepared = found
            if chain is None or found is None:
                self._next = Chain.root(self._generation)
            else:
                self._next = chain.fork(self._generation, found.generation, found.step)
        return found

    def _newest(self, chain: Chain | None, memory: Snapshot | None) -> Prepared | None:
        """Newest first over memory and storage; at the same step memory, which costs nothing."""
        trusted = memory if self._memory_is_newest else None
        if trusted is not None and trusted.step >= self._committed_step:
            return Prepared.of(trusted, "memory")  # storage has nothing newer, and need not be asked

        memory_step = -1 if memory is None else memory.step
        search = Search(self._find_stored, memory_step=memory_step, committed_step=self._committed_step)

        def ask() -> Snapshot | None:
            if chain is not None:
                self._begin(chain)
            restored = search()
            if restored is None:
                return None
            for bad in restored.rejected:
                self._note(f"the checkpoint of step {bad.step} is damaged and in quarantine: {bad.reason}")
            with self._lock:
                return self._staging.restored()

        # Also with memory in hand: storage is known to have a newer state, and to fork before it would lose that.
        stored = self._patiently(ask, None)
        if stored is not None:
            return Prepared.of(stored, "storage")
        return None if memory is None else Prepared.of(memory, "memory")

    def _find_stored(self, memory_step: int) -> Stored | None:
        """The newest in storage that is newer than what is here, brought here."""
        known = self._committed_step > 0
        return bring_slot(self.catalog, self._config, self._make_restore_file, memory_step, known=known)

    def _make_restore_file(self, size_bytes: int) -> Path:
        with self._lock:
            if self._stopping.is_set():
                raise InterruptedError("stopped")  # what is made now nobody would remove
            return self._staging.make_restore_file(size_bytes)

    def restored(self, *, loaded: bool) -> None:
        """The training process has begun: with what was prepared (`loaded`), or with nothing, by its own choice or
        because there was nothing. Its generation is the chain's newest from now on.
        """
        with self._lock:
            offered, self._prepared = self._prepared, None
            if offered is not None:
                self._staging.release(offered.index, "restore")
                # What was committed after that lies off the chain from here on.
                self._committed_step = min(self._committed_step, offered.step if loaded else 0)
            if loaded and self._next is not None:
                self._establish(self._next)
                source = "" if offered is None else offered.source
                threading.Thread(target=self._announce, args=(self._next, source), daemon=True).start()
                return
            if offered is not None:
                self._note(f"was told to start over: the state of step {offered.step} is left behind")
            self._establish(Chain.root(self._generation))

    def _establish(self, chain: Chain) -> None:
        if self._chain is not None and chain.generation <= self._chain.generation:
            return
        self._chain, self._memory_is_newest = chain, True
        self.saved_s = time.monotonic()
        try:
            self._staging.save_lineage(chain)
        except OSError as error:
            # Only an agent that comes after this one, and finds storage away, would have needed it.
            self._note(f"the chain could not be noted beside the snapshots: {error}")

    def _announce(self, chain: Chain, source: str) -> None:
        """In storage as soon as it trains: its first commit may be long in coming, and until then who was superseded
        would not know it, and might remove what this generation goes on from. Storage that fails is left to the commit.
        """
        try:
            self._begin(chain)
            assert chain.parent is not None
            went_on_from = self.catalog.manifest_path(chain.parent, chain.restored_step)
            if source == "storage" and not self.storage.exists(went_on_from):
                self.saved_s = 0.0  # removed a moment ago: a save is due, or another loss would find nothing
        except Superseded as error:
            if self._chain is chain:
                self._superseded(str(error))
        except (CheckpointError, StorageError):
            pass

    def process_gone(self, *, well: bool = False) -> None:
        """The training process is dead (`well`: it exited with code 0): a slot it was filling is free again, one it
        had just filled is kept safe.
        """
        with self._lock:
            self._staging.abandon()
            self._queue_newest({"reason": "process ended"})

    def poison(self, stretch: Stretch) -> list[poison.Point]:
        """Nothing of `stretch` is restored from now on, and its process is gone; returns the checkpoints marked."""
        with self._lock:
            bad = [s for s in self._staging.snapshots() if poison.in_memory(stretch, s)]
            self._filled = [filled for filled in self._filled if filled.snapshot not in bad]
            coming = [self._writing.snapshot] if self._writing and self._writing.snapshot in bad else []
            self._staging.forget(bad)
            self._committed_step = min(self._committed_step, stretch.bad_step - 1)
        return self._patiently(lambda: poison.mark(self.catalog, stretch, coming), None) or []

    def _queue_newest(self, info: Mapping[str, Any]) -> None:
        """The newest snapshot goes to storage, unless it is there or on its way. Under the lock."""
        newest = None if self._chain is None else self._staging.newest_ready(self._chain)
        if newest is None or newest.index == RESTORE_INDEX:
            return
        known = {
            (f.snapshot.generation, f.snapshot.step) for f in (*self._filled, self._writing) if f is not None
        }
        if (newest.generation, newest.step) not in known | self._committed:
            self._queue(newest, info)

    # saving

    def acquire(self, size_bytes: int, *, spare_newest: bool = False) -> Given | None:
        """A slot to fill, or None while there is none free, or none (`spare_newest`) but that of the newest
        snapshot. OSError when there is room for it nowhere.
        """
        with self._lock:
            if self._chain is None or self._chain.generation < self._generation:
                self.restored(loaded=False)  # it never said: then it began with nothing
            if spare_newest and self._staging.only_newest_is_free:
                return None
            return self._staging.acquire(size_bytes)

    def saved(self, index: int, info: Mapping[str, Any]) -> None:
        with self._lock:
            if self._staging.writing != index:
                return  # its process is gone, and what it had filled was taken care of then
            snapshot = self._staging.ready(index)
            if info.get("reason") == IN_MEMORY:
                return  # storage gets it when the process dies before there is a newer one
            self.saved_s, self.saved_step = time.monotonic(), snapshot.step
            self.pacing.saved(info.get("blocked_s"))
            self._queue(snapshot, dict(info))

    def save_failed(self) -> None:
        with self._lock:
            self._staging.abandon()

    def _queue(self, snapshot: Snapshot, info: Mapping[str, Any]) -> None:
        with self._lock:
            self._filled.append(Filled(snapshot, info))
            self._staging.hold(snapshot.index, self._filled[-1].why_held)
            self._lock.notify_all()

    # writing

    def _write_all(self) -> None:
        while True:
            with self._lock:
                self._lock.wait_for(lambda: self._closed or self._filled)
                if not self._filled:
                    return
                # The newest first: where storage is slow, an older one would only delay it.
                self._filled.sort(key=lambda filled: (filled.snapshot.step, filled.snapshot.generation))
                self._writing = self._filled.pop()
                for older in self._filled:
                    self._staging.release(older.snapshot.index, older.why_held)
                self._filled = []
            self._write(self._writing)
            with self._lock:
                self._staging.release(self._writing.snapshot.index, self._writing.why_held)
                self._writing = None
                self._lock.notify_all()

    def _write(self, filled: Filled) -> None:
        """Tries until it is committed, a newer snapshot waits, or nobody wants it any more."""
        tries, began_s = 0, time.monotonic()
        while True:
            try:
                self._write_once(filled)
                self._set_trouble("")
                self.pacing.drained(time.monotonic() - began_s)
                return
            except Superseded as error:
                if self._is_wanted(filled.snapshot):
                    self._superseded(str(error))
                return
            except SnapshotChanged:
                return
            except Exception as error:
                # Storage's, or a fault of ours: neither may end the keeping of the state.
                tries += 1
                self._set_trouble(f"step {filled.snapshot.step} is not in storage yet: {error}")
                if self._pause(tries):
                    return

    def _pause(self, tries: int) -> bool:
        """Between two tries; True when a newer snapshot waits instead, or nobody wants this one any more."""
        with self._lock:
            limit_s = min(pause_s(tries), HURRIED_MAX_S) if self._hurry else pause_s(tries)
            was_hurried = self._hurry
            self._lock.wait_for(
                lambda: self._closed or bool(self._filled) or self._hurry != was_hurried, timeout=limit_s
            )
            return self._closed or bool(self._filled)

    def _is_wanted(self, snapshot: Snapshot) -> bool:
        """False for what this worker has left behind itself, by starting over while it waited for storage."""
        with self._lock:
            return self._chain is None or self._chain.admits(snapshot.generation, snapshot.step)

    def _begin(self, chain: Chain) -> None:
        """In storage before its first commit, and before anything is read on its behalf."""
        # By the writer and by who announces it: an older one must not come after a newer one.
        with self._beginning:
            if self._begun is None or self._begun.generation < chain.generation:
                self._begun = self.catalog.begin(chain)

    def _write_once(self, filled: Filled) -> None:
        chain = self._chain
        assert chain is not None
        self._begin(chain)
        done = self._commit(filled)
        with self._lock:
            own = (self._chain or chain).generation  # by now: this process may have begun anew meanwhile
        confirm(self.catalog, done.generation, done.step, self._config.world_size, by=own)
        with self._lock:
            self._committed_step = max(done.step, self._committed_step)
            if len(self._committed) >= COMMITTED_REMEMBERED:
                self._committed.clear()
            self._committed.add((done.generation, done.step))
        removed = self._retainer.retain_after(RestorePoint(done.generation, done.step), self._note)
        if problem := self._sweeper.after(done.generation, self._on_their_way(), own):
            self._note(problem)
        extra = {
            **{name: filled.info.get(name) for name in ("epoch", "reason", "blocked_s")},
            "deleted": [[str(Generation(*point.generation)), point.step] for point in removed],
        }
        self._tell(done.step, Generation(*done.generation), done.size_bytes, done.seconds_s, extra)

    def _commit(self, filled: Filled) -> Committed:
        return commit_slot(self.catalog, self._config, filled)

    def _on_their_way(self) -> list[tuple[tuple[int, int], int]]:
        with self._lock:
            return [(snapshot.generation, snapshot.step) for snapshot in self._staging.snapshots()]

    def drain(self, limit_s: float) -> bool:
        """Waits until all that was saved is in storage, trying without long pauses. False: not within `limit_s`."""
        with self._lock:
            self._hurry = True
            self._lock.notify_all()
            return self._lock.wait_for(
                lambda: (not self._filled and self._writing is None) or not self._writer.is_alive(),
                timeout=limit_s,
            )

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._lock.notify_all()

    def join(self, limit_s: float) -> None:
        """After `close`: what was being written is written, or has failed."""
        if self._writer.is_alive():
            self._writer.join(limit_s)

    # telling

    def _set_trouble(self, trouble: str) -> None:
        if trouble != self._trouble:
            self._trouble = trouble
            if trouble:
                self._note(f"storage: {trouble}")

    def status(self) -> dict[str, Any]:
        return {
            "storage_trouble": self._trouble,
            "snapshot_step": self.saved_step or None,
            "checkpointing": self.pacing.status(),
        }
