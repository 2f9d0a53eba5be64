"""Copies between a slot and the state: one pass, on as many threads as this rank has cores to itself.

On the machine of FIELD's figures one thread copies 10-12 GB/s and two 18-22. The threads live only as long as one
copy: between snapshots the cores belong to the training.
"""

from __future__ import annotations

import os
import threading
from typing import Any, Sequence

from .arrays import numpy_module

THREADS_MAX = 4
"""More do not copy faster: by then memory is what limits."""
THREADED_BYTES_MIN = 64 << 10
"""Smaller pieces are copied by one thread: another would spend its time waiting for the interpreter's lock."""
THREAD_BYTES_MIN = 16 << 20
"""A thread that is to copy less than this is not started."""

Pair = Any
"""(target, source): two flat NumPy arrays of bytes of one length, the target writable."""


def thread_count() -> int:
    """Cores that this process may use, shared with the other ranks of the machine."""
    try:
        ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    except ValueError:
        ranks = 1
    return max(1, min(THREADS_MAX, len(os.sched_getaffinity(0)) // max(1, ranks)))


def copy_pairs(pairs: Sequence[Pair], threads: int | None = None) -> None:
    """Copies every pair. Raises what the copying raises, after all threads have ended."""
    numpy = numpy_module()
    total = sum(target.nbytes for target, _ in pairs)
    count = thread_count() if threads is None else threads
    count = max(1, min(count, total // THREAD_BYTES_MIN))
    shares = _shares(pairs, total, count)
    errors: list[BaseException] = []

    def work(share: Sequence[Pair]) -> None:
        try:
            for target, source in share:
                numpy.copyto(target, source)
        except BaseException as error:  # raised again by the thread that waits
            errors.append(error)

    helpers, own = [], shares[:1]
    for share in shares[1:]:
        helper = threading.Thread(target=work, args=(share,), name="orch-copy", daemon=True)
        try:
            helper.start()
        except RuntimeError:  # no more threads to be had
            own.append(share)
        else:
            helpers.append(helper)
    for share in own:
        work(share)
    for helper in helpers:
        helper.join()
    if errors:
        raise errors[0]


def _shares(pairs: Sequence[Pair], total: int, count: int) -> list[Sequence[Pair]]:
    """`count` lists of about as many bytes each; a pair that lies across a border is cut."""
    if count <= 1:
        return [pairs]
    limit = -(-total // count)
    shares: list[Sequence[Pair]] = []
    share: list[Pair] = []
    room = limit
    for target, source in pairs:
        while target.nbytes > room:
            share.append((target[:room], source[:room]))
            target, source = target[room:], source[room:]  # noqa: PLW2901 - the rest of it
            shares.append(share)
            share, room = [], limit
        share.append((target, source))
        room -= target.nbytes
    shares.append(share)
    return shares


class Fills:
    """A `Fill` (tree.py) that only notes what is to be copied; `run` copies all of it."""

    def __init__(self) -> None:
        self._pairs: list[Pair] = []

    def __call__(self, target: Any, data: memoryview) -> None:
        if len(data):
            self._pairs.append((target, numpy_module().frombuffer(data, "u1")))

    def run(self) -> None:
        pairs, self._pairs = self._pairs, []
        copy_pairs(pairs)
