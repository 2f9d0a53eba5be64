"""Large files past the page cache: the disk fetches from the snapshot's own pages, and puts into them.

Training owns the machine. A buffered write copies every byte into the page cache, which costs a core more than
ten times as much as handing the disk the addresses, takes memory that training may want, and stalls when the
kernel decides to write back (open(2), O_DIRECT). File offset, address and length have to be multiples of the
device's block; what is not goes through a small aligned buffer, and a file system that knows no O_DIRECT gets
ordinary writes and reads.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

BLOCK_BYTES = 4096
"""A multiple of what any device asks for (512 or 4096), and the size of a page."""
DIRECT_BYTES_MIN = 1 << 20
"""Below this the page cache is quicker: the disk's own latency counts more than copying."""
STEP_BYTES = 16 << 20
"""Handed to the disk at a time."""
BOUNCE_BYTES = 1 << 20
"""The aligned buffer for what is not aligned itself."""


def phase_of(view: memoryview) -> int:
    """Where a buffer begins within a block of memory. In a file it is written best at the same place of one."""
    if not len(view):
        return 0
    return address_of(view) % BLOCK_BYTES


def address_of(view: memoryview) -> int:
    """Where a buffer that is not empty begins."""
    import numpy as np  # here, so that agents begin without it

    address: int = np.frombuffer(view, dtype=np.uint8).__array_interface__["data"][0]
    return address


def write_all(descriptor: int, buffers: Sequence[memoryview]) -> None:
    """Writes `buffers` one after the other into a new, empty file. Not yet durable: that takes an fsync."""
    size_bytes = sum(map(len, buffers))
    if size_bytes < DIRECT_BYTES_MIN or not _set_direct(descriptor, on=True):
        _Writer(descriptor, direct=False).write(buffers)
        return
    _Writer(descriptor, direct=True).write(buffers)


def forget(descriptor: int) -> None:
    """A large file is durable: takes what there is of it out of the page cache, which is training's."""
    if os.fstat(descriptor).st_size >= DIRECT_BYTES_MIN:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


class _Writer:
    """Puts blocks where blocks can go as they are, and gathers the rest."""

    def __init__(self, descriptor: int, *, direct: bool) -> None:
        self._descriptor = descriptor
        self._direct = direct
        self._offset = 0
        self._gathered = 0
        # Anonymous memory begins at a page; a bytearray would not.
        self._bounce = memoryview(mmap.mmap(-1, BOUNCE_BYTES if direct else BLOCK_BYTES))

    def write(self, buffers: Sequence[memoryview]) -> None:
        for buffer in buffers:
            self._add(buffer)
        if self._gathered:
            self._flush()

    def _add(self, buffer: memoryview) -> None:
        if not self._direct:
            for at in range(0, len(buffer), STEP_BYTES):
                begin = self._offset
                self._put(buffer[at : at + STEP_BYTES])
                # Not kept, so written out from now on (fadvise(2)), and not in one go at the fsync.
                if self._offset - begin >= DIRECT_BYTES_MIN:
                    os.posix_fadvise(self._descriptor, begin, self._offset - begin, os.POSIX_FADV_DONTNEED)
            return
        phase, at = phase_of(buffer), 0
        while at < len(buffer):
            left = len(buffer) - at
            if not self._gathered and (phase + at) % BLOCK_BYTES == 0 and left >= BLOCK_BYTES:
                count = min(left - left % BLOCK_BYTES, STEP_BYTES)
                self._put(buffer[at : at + count])
            else:
                # In step with the file, gathering ends with the block; else it never will, and takes all.
                in_step = (phase + at - self._gathered) % BLOCK_BYTES == 0
                room = (BLOCK_BYTES if in_step else BOUNCE_BYTES) - self._gathered % BLOCK_BYTES
                count = min(left, room, BOUNCE_BYTES - self._gathered)
                self._bounce[self._gathered : self._gathered + count] = buffer[at : at + count]
                self._gathered += count
                if self._gathered == BOUNCE_BYTES or (in_step and self._gathered % BLOCK_BYTES == 0):
                    self._flush()
            at += count

    def _flush(self) -> None:
        whole = -(-self._gathered // BLOCK_BYTES) * BLOCK_BYTES
        end = self._offset + self._gathered
        self._bounce[self._gathered : whole] = bytes(whole - self._gathered)
        self._put(self._bounce[:whole])
        if whole != self._gathered:  # the file's end: the filling was the block's, not the file's
            os.ftruncate(self._descriptor, end)
        self._gathered = 0

    def _put(self, view: memoryview) -> None:
        done = 0
        while done < len(view):
            try:
                count = os.pwrite(self._descriptor, view[done:], self._offset)
            except OSError as error:
                if error.errno != errno.EINVAL or not self._buffered_from_here():
                    raise
                continue
            done += count
            self._offset += count
            if count % BLOCK_BYTES and done < len(view):
                self._buffered_from_here()

    def _buffered_from_here(self) -> bool:
        """The file system took the flag and not the write. False: it was not the flag."""
        return _set_direct(self._descriptor, on=False)


def read_into(descriptor: int, start: int, view: memoryview, *, direct: int | None = None) -> int:
    """Fills `view` from `start` on and returns how many bytes there were.

    What the page cache holds is copied from there. `direct`: the same file opened with O_DIRECT, for the rest,
    when place and length suit; without it everything is an ordinary read.
    """
    done = 0
    suits = (
        direct is not None and len(view) >= DIRECT_BYTES_MIN and (start - phase_of(view)) % BLOCK_BYTES == 0
    )
    while done < len(view):
        count = 0
        if suits and direct is not None:
            count = _cached(descriptor, start + done, view[done:])
            if not count:
                count = _aligned_read(direct, start + done, view[done:])
        if not count:
            count = os.preadv(descriptor, [view[done:]], start + done)
            if not count:
                break
        done += count
    return done


def _cached(descriptor: int, start: int, view: memoryview) -> int:
    try:
        return os.preadv(descriptor, [view], start, os.RWF_NOWAIT)
    except OSError as error:
        if error.errno in {errno.EAGAIN, errno.EOPNOTSUPP, errno.EINVAL}:
            return 0
        raise


def _aligned_read(direct: int, start: int, view: memoryview) -> int:
    """One read past the cache; 0 when it is not possible here, which an ordinary read then settles."""
    whole = len(view) - len(view) % BLOCK_BYTES
    if start % BLOCK_BYTES or not whole:
        return 0
    try:
        return os.preadv(direct, [view[:whole]], start)
    except OSError as error:
        if error.errno == errno.EINVAL:
            return 0
        raise


def _set_direct(descriptor: int, *, on: bool) -> bool:
    """Whether the flag has changed to what was asked."""
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    wanted = flags | os.O_DIRECT if on else flags & ~os.O_DIRECT
    if flags == wanted:
        return False
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETFL, wanted)
    except OSError as error:
        if error.errno == errno.EINVAL:
            return False
        raise
    return True
