"""A slot: one snapshot of one rank in one file in shared memory.

File layout (little-endian): a 4096-byte header, the data region (each entry 64-byte aligned), then the
description as UTF-8 JSON. The state word in the header is READY only while everything else is whole: it goes
to WRITING before the first byte changes and to READY after the last, so a torn slot cannot be mistaken for a
good one however the writer died (stores are in order on the machines we support; a SIGKILL does not undo
stores to a shared mapping).

The description (``SlotMeta``): ``{"tree": …, "entries": [{"name", "dtype", "shape", "offset", "size_bytes"}],
"step", "epoch", "metrics", "kind": "state", "frameworks": {…}}``; entry offsets count from the data region's
start; dtype is a safetensors name (F32, BF16, I64, …) or one of ours for what safetensors cannot hold.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
import zlib
from typing import Any, NamedTuple

HEADER_BYTES = 4096
ALIGNMENT_BYTES = 64
META_BYTES_MAX = 256 << 20
"""A description longer than this is refused, by the writer and by the reader."""

EMPTY, WRITING, READY = 0, 1, 2

_MAGIC = b"ORCHSLOT"
_VERSION = 1
# magic, version, state, attempt, restart, step, data bytes, meta offset, meta bytes, meta crc32
_HEADER = struct.Struct("<8sIIQQQQQQI")
_STATE_OFFSET = 12


class SlotHeader(NamedTuple):
    state: int
    attempt: int
    restart: int
    step: int
    data_bytes: int
    meta_offset: int
    meta_bytes: int
    meta_crc32: int

    @property
    def generation(self) -> tuple[int, int]:
        return (self.attempt, self.restart)


class SlotDamagedError(ValueError):
    """The file is no slot, or not a whole one."""


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

    def __init__(self, path: str, *, writable: bool = False) -> None:
        self.path = path
        self._writable = writable
        descriptor = os.open(path, os.O_RDWR if writable else os.O_RDONLY)
        try:
            self.capacity_bytes = os.fstat(descriptor).st_size
            if self.capacity_bytes < HEADER_BYTES:
                raise SlotDamagedError(f"{path}: {self.capacity_bytes} bytes, shorter than a slot's header")
            access = mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ
            self._map: mmap.mmap | None = mmap.mmap(descriptor, self.capacity_bytes, access=access)
        finally:
            os.close(descriptor)
        self.view = memoryview(self._map)

    @staticmethod
    def create(path: str, capacity_bytes: int) -> None:
        """A new empty slot file of header plus `capacity_bytes`, its pages allocated (ENOSPC is raised here)."""
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            os.ftruncate(descriptor, 0)
            os.posix_fallocate(descriptor, 0, HEADER_BYTES + capacity_bytes)
            os.pwrite(descriptor, _HEADER.pack(_MAGIC, _VERSION, EMPTY, 0, 0, 0, 0, 0, 0, 0), 0)
        finally:
            os.close(descriptor)

    def close(self) -> None:
        """Unmaps; a no-op while somebody still holds a view of the data (an array made from it)."""
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
        _HEADER.pack_into(self.view, 0, _MAGIC, _VERSION, WRITING, *generation, step, 0, 0, 0, 0)

    def finish(self, generation: tuple[int, int], step: int, data_bytes: int, meta: dict[str, Any]) -> None:
        """Writes the description behind the data and marks the slot READY.

        Raises ValueError when it does not fit: reserve `data_bytes` + `meta_reserve(...)` beforehand.
        """
        encoded = json.dumps(meta, separators=(",", ":"), allow_nan=False).encode()
        meta_offset = aligned(HEADER_BYTES + data_bytes)
        if len(encoded) > META_BYTES_MAX or meta_offset + len(encoded) > self.capacity_bytes:
            raise ValueError(
                f"{self.path}: {data_bytes} bytes of data and {len(encoded)} of description "
                f"do not fit into {self.capacity_bytes}"
            )
        self.view[meta_offset : meta_offset + len(encoded)] = encoded
        packed = _HEADER.pack(
            _MAGIC,
            _VERSION,
            WRITING,
            *generation,
            step,
            data_bytes,
            meta_offset,
            len(encoded),
            zlib.crc32(encoded),
        )
        self.view[: len(packed)] = packed
        struct.pack_into("<I", self.view, _STATE_OFFSET, READY)

    def read(self) -> tuple[SlotHeader, dict[str, Any]]:
        """Header and description of a READY slot; SlotDamagedError with the reason otherwise."""
        header = self.header()
        if header.state != READY:
            raise SlotDamagedError(f"{self.path}: never finished (state {header.state})")
        end = header.meta_offset + header.meta_bytes
        if header.meta_bytes > META_BYTES_MAX or end > self.capacity_bytes:
            raise SlotDamagedError(f"{self.path}: its description lies outside the file")
        if HEADER_BYTES + header.data_bytes > header.meta_offset:
            raise SlotDamagedError(f"{self.path}: data and description overlap")
        encoded = bytes(self.view[header.meta_offset : end])
        if zlib.crc32(encoded) != header.meta_crc32:
            raise SlotDamagedError(f"{self.path}: its description does not match its checksum")
        meta: dict[str, Any] = json.loads(encoded)
        return header, meta
