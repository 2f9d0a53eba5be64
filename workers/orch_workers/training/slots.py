"""A slot: one snapshot of one rank in one file in shared memory.

File layout (little-endian): a 4096-byte header, the data region (each entry 64-byte aligned), then the
description as UTF-8 JSON, in two parts, each with its checksum in the header: a fixed one, encoded once for
many snapshots, and the rest. The state word in the header is READY only while everything else is whole: it
goes to WRITING before the first byte changes and to READY after the last, so a torn slot cannot be mistaken
for a good one however the writer died (stores are in order on the machines we support; a SIGKILL does not
undo stores to a shared mapping).

The description as `Slot.read` gives it: ``{"tree": …, "entries": [{"name", "dtype", "shape", "offset",
"size_bytes"}], "step", "epoch", "metrics", "kind": "state", "frameworks": {…}}``; entry offsets count from the
data region's start; dtype is a safetensors name (F32, BF16, I64, …) or one of ours for what safetensors cannot
hold. In the file the fixed part is ``{"tree", "entries"}`` or empty, and the rest is everything else, more of
both, and ``fill``: ``[[path, node], …]``, what belongs in the holes that the fixed tree has at those paths.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import struct
import zlib
from typing import Any, Callable, NamedTuple

from .collection import no_collection

HEADER_BYTES = 4096
ALIGNMENT_BYTES = 64
META_BYTES_MAX = 256 << 20
"""A description longer than this is refused, by the writer and by the reader."""

EMPTY, WRITING, READY = 0, 1, 2

_MAGIC = b"ORCHSLOT"
_VERSION = 2
# magic, version, state, attempt, restart, step, data bytes, meta offset, fixed bytes, fixed crc32, rest bytes,
# rest crc32
_HEADER = struct.Struct("<8sIIQQQQQQIQI")
_STATE_OFFSET = 12
_NOTHING = (0,) * 9
_MADV_POPULATE_WRITE = 23
"""madvise(2), Linux 5.14: maps the pages at once. One fault each costs six times as much as copying them."""


class SlotHeader(NamedTuple):
    state: int
    attempt: int
    restart: int
    step: int
    data_bytes: int
    meta_offset: int
    fixed_bytes: int
    fixed_crc32: int
    rest_bytes: int
    rest_crc32: int

    @property
    def generation(self) -> tuple[int, int]:
        return (self.attempt, self.restart)


class SlotDamagedError(ValueError):
    """The file is no slot, or not a whole one."""


class FixedPart(NamedTuple):
    """The part of a description that many snapshots share, encoded once."""

    encoded: bytes
    crc32: int

    @staticmethod
    def of(description: dict[str, Any]) -> FixedPart:
        encoded = encode(description)
        return FixedPart(encoded, zlib.crc32(encoded))


NO_FIXED_PART = FixedPart(b"", 0)


def encode(description: dict[str, Any]) -> bytes:
    return json.dumps(description, separators=(",", ":"), allow_nan=False).encode()


def aligned(offset: int) -> int:
    return (offset + ALIGNMENT_BYTES - 1) // ALIGNMENT_BYTES * ALIGNMENT_BYTES


def parse_generation(text: str) -> tuple[int, int]:
    """``"000001.000002"`` → ``(1, 2)``."""
    attempt, _, restart = text.partition(".")
    return int(attempt), int(restart)


def format_generation(generation: tuple[int, int]) -> str:
    attempt, restart = generation
    return f"{attempt:06d}.{restart:06d}"


class Slot:
    """A mapped slot file. One process writes at a time; who may is the agent's to say."""

    def __init__(
        self, path: str, *, writable: bool = False, private: bool = False, populate: bool = True
    ) -> None:
        """private: for a reader that makes arrays of the mapped memory itself; what is stored into them stays
        in this process. populate: False for a writer that maps the pages itself, as it goes.
        """
        self.path = path
        self._writable = writable
        descriptor = os.open(path, os.O_RDWR if writable else os.O_RDONLY)
        try:
            self.capacity_bytes = os.fstat(descriptor).st_size
            if self.capacity_bytes < HEADER_BYTES:
                raise SlotDamagedError(f"{path}: {self.capacity_bytes} bytes, shorter than a slot's header")
            access = mmap.ACCESS_COPY if private else mmap.ACCESS_READ
            access = mmap.ACCESS_WRITE if writable else access
            self._map: mmap.mmap | None = mmap.mmap(descriptor, self.capacity_bytes, access=access)
        finally:
            os.close(descriptor)
        if writable and populate:
            with contextlib.suppress(OSError):  # an older kernel: the first snapshot is slower
                self._map.madvise(_MADV_POPULATE_WRITE)
        self.view = memoryview(self._map)
        self.before_close: Callable[[], None] | None = None
        """Called once, while the memory is still mapped: whoever told a device about it takes that back."""

    @staticmethod
    def create(path: str, capacity_bytes: int) -> None:
        """A new empty slot file of header plus `capacity_bytes`, its pages allocated (ENOSPC is raised here)."""
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            os.ftruncate(descriptor, 0)
            os.posix_fallocate(descriptor, 0, HEADER_BYTES + capacity_bytes)
            os.pwrite(descriptor, _HEADER.pack(_MAGIC, _VERSION, EMPTY, *_NOTHING), 0)
        finally:
            os.close(descriptor)

    def close(self) -> None:
        """Unmaps; a no-op while somebody still holds a view of the data (an array made from it)."""
        before, self.before_close = self.before_close, None
        if before is not None:
            before()
        try:
            self.view.release()
            if self._map is not None:
                self._map.close()
        except BufferError:
            pass
        self._map = None

    def header(self) -> SlotHeader:
        magic, version, *fields = _HEADER.unpack_from(self.view, 0)
        if magic != _MAGIC or version != _VERSION:
            raise SlotDamagedError(f"{self.path}: not a slot of version {_VERSION}")
        return SlotHeader(*fields)

    def data(self) -> memoryview:
        """The data region; for a writer all of it, for a reader what the header says is there."""
        if self._writable:
            return self.view[HEADER_BYTES:]
        return self.view[HEADER_BYTES : HEADER_BYTES + self.header().data_bytes]

    def begin(self, generation: tuple[int, int], step: int) -> None:
        """Marks the slot WRITING. Everything in it counts as lost from here on."""
        struct.pack_into("<I", self.view, _STATE_OFFSET, WRITING)
        _HEADER.pack_into(self.view, 0, _MAGIC, _VERSION, WRITING, *generation, step, *_NOTHING[3:])

    def finish(
        self,
        generation: tuple[int, int],
        step: int,
        data_bytes: int,
        meta: dict[str, Any] | bytes,
        fixed: FixedPart = NO_FIXED_PART,
    ) -> None:
        """Writes the description (`meta`, encoded or not, and its fixed part) behind the data and marks the slot
        READY.

        Raises ValueError when it does not fit: the capacity must cover `aligned(data_bytes)` and both parts.
        """
        rest = meta if isinstance(meta, bytes) else encode(meta)
        start = aligned(HEADER_BYTES + data_bytes)
        middle = start + len(fixed.encoded)
        end = middle + len(rest)
        if end - start > META_BYTES_MAX or end > self.capacity_bytes:
            raise ValueError(
                f"{self.path}: {data_bytes} bytes of data and {end - start} of description "
                f"do not fit into {self.capacity_bytes}"
            )
        self.view[start:middle] = fixed.encoded
        self.view[middle:end] = rest
        checks = (len(fixed.encoded), fixed.crc32, len(rest), zlib.crc32(rest))
        packed = _HEADER.pack(_MAGIC, _VERSION, WRITING, *generation, step, data_bytes, start, *checks)
        self.view[: len(packed)] = packed
        struct.pack_into("<I", self.view, _STATE_OFFSET, READY)

    def check(self) -> SlotHeader:
        """The header of a READY slot whose description is as it was written; SlotDamagedError otherwise."""
        return self._parts()[0]

    def read(self) -> tuple[SlotHeader, dict[str, Any]]:
        """Header and description of a READY slot; SlotDamagedError with the reason otherwise."""
        header, fixed, rest = self._parts()
        with no_collection():
            meta: dict[str, Any] = json.loads(rest)
            return header, _joined(json.loads(fixed), meta) if fixed else meta

    def _parts(self) -> tuple[SlotHeader, bytes, bytes]:
        header = self.header()
        if header.state != READY:
            raise SlotDamagedError(f"{self.path}: never finished (state {header.state})")
        middle = header.meta_offset + header.fixed_bytes
        end = middle + header.rest_bytes
        if end - header.meta_offset > META_BYTES_MAX or end > self.capacity_bytes:
            raise SlotDamagedError(f"{self.path}: its description lies outside the file")
        if HEADER_BYTES + header.data_bytes > header.meta_offset:
            raise SlotDamagedError(f"{self.path}: data and description overlap")
        fixed, rest = bytes(self.view[header.meta_offset : middle]), bytes(self.view[middle:end])
        if zlib.crc32(fixed) != header.fixed_crc32 or zlib.crc32(rest) != header.rest_crc32:
            raise SlotDamagedError(f"{self.path}: its description does not match its checksum")
        return header, fixed, rest


def _joined(fixed: dict[str, Any], rest: dict[str, Any]) -> dict[str, Any]:
    """The whole description. The filled holes come first: they may only lie in the fixed tree."""
    tree = fixed["tree"]
    for path, node in rest.pop("fill"):
        place = tree
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = node
    return {**rest, "tree": {**tree, **rest["tree"]}, "entries": [*fixed["entries"], *rest["entries"]]}
