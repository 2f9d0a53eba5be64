"""TensorFlow checkpoints: `NAME.index` (a table), `NAME.data-R-of-N`, and the state file `checkpoint` beside them.

After tensorflow/core/util/tensor_bundle and leveldb's table_format.md. An index says how long each data file must be.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import IO, NamedTuple

MAGIC = 0xDB4775248B80FB57.to_bytes(8, "little")
FOOTER_BYTES = 48
_TRAILER_BYTES = 5
"""Behind each block: how it is compressed, and its checksum."""
BLOCK_BYTES_MAX = 256 << 20
_DATA = re.compile(r"(.+)\.data-(\d{5})-of-(\d{5})")
_LATEST = re.compile(rb'^\s*model_checkpoint_path:\s*"((?:[^"\\]|\\.)*)"', re.MULTILINE)
_SHARD, _OFFSET, _SIZE, _SHARDS = 3, 4, 5, 1
"""Field numbers of BundleEntryProto and BundleHeaderProto."""


class Index(NamedTuple):
    """`problem` "" when it reads; `sizes`: how long each data file must at least be, by its number."""

    problem: str
    sizes: dict[int, int]
    shards: int


def read_index(stream: IO[bytes]) -> Index:
    """Of an `.index` file."""
    try:
        return _read(stream)
    except (ValueError, IndexError, OverflowError) as error:
        return Index(f"it does not read ({error})", {}, 0)


def _read(stream: IO[bytes]) -> Index:
    size = stream.seek(0, os.SEEK_END)
    if size < FOOTER_BYTES:
        return Index("it is cut short", {}, 0)
    stream.seek(size - FOOTER_BYTES)
    footer = stream.read(FOOTER_BYTES)
    if footer[-8:] != MAGIC:
        return Index("it is no table, or is cut short", {}, 0)
    at = 0
    _, at = _varint(footer, at)
    _, at = _varint(footer, at)
    start, at = _varint(footer, at)
    length, at = _varint(footer, at)
    sizes: dict[int, int] = {}
    shards = 1
    for _, handle in _entries(_block(stream, start, length, size)):
        block_start, where = _varint(handle, 0)
        block_length, _ = _varint(handle, where)
        for key, value in _entries(_block(stream, block_start, block_length, size)):
            fields = _fields(value)
            if not key:
                shards = fields.get(_SHARDS, 1)
                continue
            shard = fields.get(_SHARD, 0)
            end = fields.get(_OFFSET, 0) + fields.get(_SIZE, 0)
            sizes[shard] = max(end, sizes.get(shard, 0))
    return Index("", sizes, shards)


def data_name(prefix: str, shard: int, shards: int) -> str:
    return f"{prefix}.data-{shard:05d}-of-{shards:05d}"


def prefix_of_data(name: str) -> str | None:
    """`ckpt-3` of `ckpt-3.data-00000-of-00001`; None when it is no such name."""
    found = _DATA.fullmatch(name)
    return found[1] if found else None


def latest_of(state: bytes) -> str | None:
    """The newest checkpoint that a state file names; None when it names none."""
    found = _LATEST.search(state)
    if found is None:
        return None
    return re.sub(rb"\\(.)", rb"\1", found[1]).decode(errors="replace")


def _block(stream: IO[bytes], start: int, length: int, size: int) -> bytes:
    if start + length + _TRAILER_BYTES > size or length > BLOCK_BYTES_MAX:
        raise ValueError("a block lies outside of it")
    stream.seek(start)
    data = stream.read(length + 1)
    if data[-1]:
        raise ValueError("a block is compressed")
    return data[:-1]


def _entries(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    restarts = int.from_bytes(block[-4:], "little")
    end = len(block) - 4 * (restarts + 1)
    if end < 0:
        raise ValueError("a block is cut short")
    at, key = 0, b""
    while at < end:
        shared, at = _varint(block, at)
        unshared, at = _varint(block, at)
        length, at = _varint(block, at)
        key = key[:shared] + block[at : at + unshared]
        at += unshared
        yield key, block[at : at + length]
        at += length


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
        if shift > 63:
            raise ValueError("a number has no end")


def _fields(message: bytes) -> dict[int, int]:
    """The numbers among a protocol buffer's fields."""
    found, at = {}, 0
    while at < len(message):
        tag, at = _varint(message, at)
        number, kind = tag >> 3, tag & 7
        if kind == 0:
            found[number], at = _varint(message, at)
        elif kind == 2:
            length, at = _varint(message, at)
            at += length
        elif kind in {1, 5}:
            at += 8 if kind == 1 else 4
        else:
            raise ValueError("a field does not read")
    return found
