"""HDF5: is a file whole? Its superblock, groups, object headers and data are followed as far as they go.

HDF5 writes its data as it comes and its structure when it is flushed or closed, so a file whose writer was killed has
data without a structure, or a structure that points beyond its end. After "HDF5 File Format Specification" 3.0.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import IO, NamedTuple

SIGNATURE = b"\x89HDF\r\n\x1a\n"
OBJECTS_MAX = 100_000
"""Structures looked at; of a file with more the rest is taken as it is."""
MESSAGES_BYTES_MAX = 64 << 20
_USERBLOCKS = (0, *(512 << n for n in range(12)))
_UNDEFINED = 0xFFFFFFFFFFFFFFFF
_OPEN_FOR_WRITING = 1
_SYMBOL_TABLE, _DATA_LAYOUT, _CONTINUATION = 0x11, 0x08, 0x10


class _BrokenError(Exception):
    """The sentence says what is wrong."""


def problem_of(stream: IO[bytes]) -> str:
    """What is wrong with it; "" when it is whole, as far as can be seen."""
    try:
        _Reader(stream).walk()
    except _BrokenError as error:
        return str(error)
    return ""


class _Block(NamedTuple):
    kind: str
    address: int


class _Reader:
    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._size = stream.seek(0, os.SEEK_END)
        self._base, self._offsets, self._lengths = 0, 8, 8
        self._root = 0
        self._is_new = False

    def walk(self) -> None:
        self._superblock()
        if self._is_new:
            if self._at(self._root, 4) != b"OHDR":
                raise _BrokenError("its root group is missing")
            return
        waiting, seen = [_Block("object", self._root)], set[_Block]()
        while waiting and len(seen) < OBJECTS_MAX:
            block = waiting.pop()
            if block in seen:
                continue
            seen.add(block)
            waiting.extend(getattr(self, f"_{block.kind}")(block.address))

    # reading

    def _at(self, address: int, count: int) -> bytes:
        if address == _UNDEFINED or address + count + self._base > self._size:
            raise _BrokenError(f"it ends before byte {address + count + self._base}")
        self._stream.seek(self._base + address)
        return self._stream.read(count)

    def _number(self, data: bytes, at: int, size: int) -> int:
        return int.from_bytes(data[at : at + size], "little")

    def _offset(self, data: bytes, at: int) -> int:
        found = self._number(data, at, self._offsets)
        return _UNDEFINED if found == (1 << 8 * self._offsets) - 1 else found

    # structures

    def _superblock(self) -> None:
        for start in _USERBLOCKS:
            if start + 48 <= self._size:
                self._stream.seek(start)
                if self._stream.read(8) == SIGNATURE:
                    break
        else:
            raise _BrokenError("it has no superblock")
        self._stream.seek(start)
        head = self._stream.read(128)
        version = head[8]
        if version in {0, 1}:
            self._offsets, self._lengths = head[13], head[14]
            at = 24 if version == 0 else 28
            # base address, free space, end of file, driver information, then the root group's entry
            base, _, end, _ = (self._offset(head, at + number * self._offsets) for number in range(4))
            root = self._offset(head, at + 5 * self._offsets)
        elif version in {2, 3}:
            self._offsets, self._lengths, self._is_new = head[9], head[10], True
            if version == 3 and head[11] & _OPEN_FOR_WRITING:
                raise _BrokenError("its writer has not closed it")
            base, _, end, root = (self._offset(head, 12 + number * self._offsets) for number in range(4))
        else:
            raise _BrokenError(f"its superblock is of version {version}")
        if self._offsets not in {2, 4, 8} or self._lengths not in {2, 4, 8}:
            raise _BrokenError("its superblock does not read")
        self._base = base if start == 0 else start
        if end in {0, _UNDEFINED} or end > self._size:
            raise _BrokenError(f"it has {self._size} bytes and should have {end}")
        self._root = root

    def _object(self, address: int) -> Iterator[_Block]:
        """An object header: version 1 is followed, version 2 is only looked for."""
        head = self._at(address, 16)
        if head[:4] == b"OHDR":
            return
        if head[0] != 1:
            raise _BrokenError(f"there is no object at byte {address}")
        count = self._number(head, 2, 2)
        blocks = [(address + 16, self._number(head, 8, 4))]
        while blocks and count:
            start, length = blocks.pop(0)
            if length > MESSAGES_BYTES_MAX:
                raise _BrokenError(f"the object at byte {address} does not read")
            data, at = self._at(start, length), 0
            while at + 8 <= length and count:
                kind, size = self._number(data, at, 2), self._number(data, at + 2, 2)
                body = data[at + 8 : at + 8 + size]
                if len(body) < size:
                    raise _BrokenError(f"the object at byte {address} is cut short")
                at, count = at + 8 + size, count - 1
                if kind == _CONTINUATION:
                    blocks.append((self._offset(body, 0), self._number(body, self._offsets, self._lengths)))
                elif kind == _SYMBOL_TABLE:
                    yield _Block("tree", self._offset(body, 0))
                    yield _Block("heap", self._offset(body, self._offsets))
                elif kind == _DATA_LAYOUT:
                    yield from self._layout(body)
        if count:
            raise _BrokenError(f"the object at byte {address} is cut short")

    def _layout(self, body: bytes) -> Iterator[_Block]:
        """Where a dataset's bytes lie, of the versions that name it plainly."""
        if body[0] != 3:
            return
        if body[1] == 1:
            address = self._offset(body, 2)
            size = self._number(body, 2 + self._offsets, self._lengths)
            if address != _UNDEFINED and self._base + address + size > self._size:
                raise _BrokenError(f"a dataset's bytes from {address} on are missing")
        elif body[1] == 2:
            address = self._offset(body, 3)
            if address != _UNDEFINED:
                yield _Block("tree", address)

    def _heap(self, address: int) -> Iterator[_Block]:
        head = self._at(address, 8 + 2 * self._lengths + self._offsets)
        if head[:4] != b"HEAP":
            raise _BrokenError(f"the names of a group are missing (byte {address})")
        self._at(self._offset(head, 8 + 2 * self._lengths), self._number(head, 8, self._lengths))
        return iter(())

    def _tree(self, address: int) -> Iterator[_Block]:
        """A node of a version 1 B-tree: of a group (type 0), or of a dataset's chunks (type 1)."""
        head = self._at(address, 8 + 2 * self._offsets)
        if head[:4] != b"TREE":
            raise _BrokenError(f"an index is missing (byte {address})")
        kind, level, used = head[4], head[5], self._number(head, 6, 2)
        if kind != 0:
            return  # keys of chunks depend on the rank: that the index is there is what is known
        step = self._lengths + self._offsets
        data = self._at(address + len(head), self._lengths + used * step)
        for number in range(used):
            child = self._offset(data, self._lengths + number * step)
            yield _Block("tree" if level else "symbols", child)

    def _symbols(self, address: int) -> Iterator[_Block]:
        head = self._at(address, 8)
        if head[:4] != b"SNOD":
            raise _BrokenError(f"a part of a group is missing (byte {address})")
        size = 2 * self._offsets + 24
        data = self._at(address + 8, self._number(head, 6, 2) * size)
        for number in range(len(data) // size):
            yield _Block("object", self._offset(data, number * size + self._offsets))
