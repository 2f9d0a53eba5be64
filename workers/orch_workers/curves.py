"""A job's metrics as TensorBoard's event files, in its storage: one curve, whatever happened on the way.

A piece is written with each checkpoint, and one at the end; each is an object of its own, since nothing in storage is
changed. Steps that were done twice are in there once: what is known after the step that was restored is dropped, and
what was written already is purged by the reader, because the first piece of a generation says where that begins
(SessionLog.START, which TensorBoard has for exactly this).
"""

from __future__ import annotations

import io
import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from orch.model.generation import Generation
from orch_workers.checkpoint.errors import AlreadyExists, StorageError

FOLDER = "tensorboard"
FILE_VERSION = "brain.Event:2"
"""With this version TensorBoard purges by SessionLog alone, and not by guessing."""
PENDING_MAX = 100_000
"""Steps that wait for a checkpoint; of more, the oldest are written nowhere."""
END_LIMIT_S = 10.0

log = logging.getLogger("orch.curves")


class Objects(Protocol):
    """Where pieces go: `Keeper` is one."""

    def create_object(self, path: str, data: bytes) -> None: ...


class Curves:
    """Of one rank, the leader's. Thread-safe; storage that is away only delays it."""

    def __init__(
        self, objects: Objects, job: str, folder: Path, clock: Callable[[], float] = time.time
    ) -> None:
        """`folder`: on this machine's disk, for what the agent after this one is to know."""
        self._objects, self._job, self._clock = objects, job, clock
        self._file = folder / "curves.jsonl"
        self._lock = threading.Lock()
        self._pending: dict[int, tuple[float, dict[str, float]]] = self._left_here()
        self._generation = Generation(0, 0)
        self._begins_at: int | None = None
        self._pieces = 0
        self._is_closed = False
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="curves")

    def restored(self, generation: Generation, step: int) -> None:
        """A process of `generation` goes on after `step`: what is known of later ones will be done again."""
        with self._lock:
            self._generation, self._begins_at, self._pieces = generation, step + 1, 0
            self._pending = {at: found for at, found in self._pending.items() if at <= step}
            self._keep_here()

    def put(self, step: int, values: Mapping[str, Any]) -> None:
        numbers = {name: float(value) for name, value in values.items()}  # "nan" and "inf" as well
        with self._lock:
            found = (self._clock(), {**self._pending.get(step, (0.0, {}))[1], **numbers})
            self._pending[step] = found
            while len(self._pending) > PENDING_MAX:
                del self._pending[min(self._pending)]
            self._append_here(step, found)

    def committed(self, step: int) -> None:
        """Nothing up to `step` is done again by itself: it may be written."""
        if not self._is_closed:  # what is still brought home after that is in the last piece
            self._writer.submit(self._write, step)

    def close(self) -> None:
        """May be called twice. The rest goes, too; a job that is resumed from before that says so in its next piece."""
        if self._is_closed:
            return
        self._is_closed = True
        last = self._writer.submit(self._write, None)
        self._writer.shutdown(wait=False)
        try:
            last.result(END_LIMIT_S)
        except Exception as error:  # a curve is nothing to hold up the end of a job for
            log.warning("the end of the curves of %s is not in storage: %s", self._job, error)

    def _write(self, until: int | None) -> None:
        with self._lock:
            found = {at: self._pending[at] for at in sorted(self._pending) if until is None or at <= until}
            generation, begins_at, piece = self._generation, self._begins_at, self._pieces
        if not found:
            return
        data = encoded(found, begins_at)
        place = f"{generation.attempt:06d}.{generation.restart:06d}.{piece:06d}"
        try:
            self._objects.create_object(f"{self._job}/{FOLDER}/events.out.tfevents.{place}", data)
        except AlreadyExists:
            log.warning("piece %s of the curves of %s was there already", place, self._job)
        except StorageError as error:
            log.info("the curves of %s wait for storage: %s", self._job, error)
            return
        with self._lock:
            if self._generation == generation:
                self._begins_at, self._pieces = None, piece + 1
            for at, written in found.items():
                if self._pending.get(at) == written:
                    del self._pending[at]
            self._keep_here()

    # on this machine's disk

    def _left_here(self) -> dict[int, tuple[float, dict[str, float]]]:
        found = {}
        try:
            lines = self._file.read_text().splitlines()
        except OSError:
            return {}
        for line in lines:
            try:
                step, at_s, values = json.loads(line)
            except ValueError:
                continue  # the last line of one that was killed while it wrote
            found[int(step)] = (float(at_s), dict(values))
        return found

    def _append_here(self, step: int, found: tuple[float, dict[str, float]]) -> None:
        try:
            with self._file.open("a") as file:
                file.write(json.dumps([step, *found]) + "\n")
        except OSError:
            log.debug("a metric could not be kept on this machine's disk", exc_info=True)

    def _keep_here(self) -> None:
        try:
            lines = [json.dumps([step, *found]) for step, found in self._pending.items()]
            self._file.write_text("".join(f"{line}\n" for line in lines))
        except OSError:
            log.debug("metrics could not be kept on this machine's disk", exc_info=True)


def encoded(points: Mapping[int, tuple[float, Mapping[str, float]]], begins_at: int | None) -> bytes:
    """An event file: step → (wall time, values). `begins_at`: whatever is known from that step on is void."""
    # Here and not above: an agent without metrics, and the start of any agent, need none of it.
    event_pb2: Any = import_module("tensorboard.compat.proto.event_pb2")  # made at run time: no types
    summary_pb2: Any = import_module("tensorboard.compat.proto.summary_pb2")
    from tensorboard.summary.writer.record_writer import RecordWriter

    file = io.BytesIO()
    writer = RecordWriter(file)
    first_s = next(iter(points.values()))[0]
    writer.write(event_pb2.Event(wall_time=first_s, file_version=FILE_VERSION).SerializeToString())
    if begins_at is not None:
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        writer.write(
            event_pb2.Event(wall_time=first_s, step=begins_at, session_log=start).SerializeToString()
        )
    for step, (at_s, values) in points.items():
        tagged = [summary_pb2.Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        event = event_pb2.Event(wall_time=at_s, step=step, summary=summary_pb2.Summary(value=tagged))
        writer.write(event.SerializeToString())
    return file.getvalue()
