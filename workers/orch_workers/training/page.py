"""The shared page: progress from the training process, the agent's word back; no system call per step.

Little-endian unsigned 64-bit words in one 4096-byte mapped file. Two areas, each with a single writer and a
sequence word that is odd while that writer is inside (a seqlock; H.-J. Boehm, "Can seqlocks get along with
programming language memory models?", MSPC 2012). Words are aligned, so each store is one machine store.

index  meaning                                      written by
0      magic
8      progress sequence                            training process
9      step: completed ``run.step`` calls
10     CLOCK_MONOTONIC of that step, nanoseconds
11     epoch
12     the newest word number it has read
13     the step at which it read it
32     word sequence                                agent
33     word number
34     save at this step (0: no request)
35     stop (0 or 1)
36     deadline, CLOCK_MONOTONIC nanoseconds (0: none)
37     hold (0 or 1): after the save at that step, wait for
       the next word, until the deadline
"""

from __future__ import annotations

import mmap
import os
import time
from typing import NamedTuple

PAGE_BYTES = 4096
_MAGIC = 0x4F52434850414745  # "ORCHPAGE"
_P = 8
_W = 32
_SPINS_MAX = 10_000
"""Reads of a busy area before the reader takes the last value it knows (the writer was killed inside)."""


class Progress(NamedTuple):
    step: int
    monotonic_ns: int
    epoch: int
    acked_word: int
    acked_at_step: int


class Word(NamedTuple):
    number: int
    save_at: int
    stop: bool
    deadline_ns: int
    hold: bool = False


class Page:
    """One side's view of the page. The agent creates it; the training process opens it."""

    def __init__(self, path: str) -> None:
        """Opens a page that `make` made. ValueError when it is none."""
        descriptor = os.open(path, os.O_RDWR)
        try:
            if os.fstat(descriptor).st_size != PAGE_BYTES:
                raise ValueError(f"{path} is not an orch progress page")
            self._map = mmap.mmap(descriptor, PAGE_BYTES)
        finally:
            os.close(descriptor)
        self._view = memoryview(self._map)
        self.words = self._view.cast("Q")
        if self.words[0] != _MAGIC:
            raise ValueError(f"{path} is not an orch progress page")
        self._progress = Progress(0, 0, 0, 0, 0)
        self._word = Word(0, 0, False, 0)

    @staticmethod
    def make(path: str) -> None:
        """A fresh page in the place of whatever is there; whole from the moment it can be seen. OSError: no room."""
        beside = path + ".new"
        descriptor = os.open(beside, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, PAGE_BYTES)  # a store into a page that cannot be had is SIGBUS
            os.pwrite(descriptor, _MAGIC.to_bytes(8, "little"), 0)
        finally:
            os.close(descriptor)
        os.replace(beside, path)

    def close(self) -> None:
        self.words.release()
        self._view.release()
        self._map.close()

    # training process

    def put_progress(self, step: int, epoch: int) -> None:
        words = self.words
        words[_P] += 1
        words[_P + 1] = step
        words[_P + 2] = time.monotonic_ns()
        words[_P + 3] = epoch
        words[_P] += 1

    def ack(self, number: int, step: int) -> None:
        words = self.words
        words[_P] += 1
        words[_P + 4] = number
        words[_P + 5] = step
        words[_P] += 1

    def read_word(self) -> Word:
        words = self.words
        for _ in range(_SPINS_MAX):
            before = words[_W]
            if before % 2 == 0:
                found = Word(
                    words[_W + 1], words[_W + 2], bool(words[_W + 3]), words[_W + 4], bool(words[_W + 5])
                )
                if words[_W] == before:
                    self._word = found
                    break
        return self._word

    # agent

    def put_word(self, *, save_at: int, stop: bool, deadline_ns: int = 0, hold: bool = False) -> int:
        """Writes a new word and returns its number."""
        words = self.words
        words[_W] += 1
        number: int = words[_W + 1] + 1
        words[_W + 1] = number
        words[_W + 2] = save_at
        words[_W + 3] = int(stop)
        words[_W + 4] = deadline_ns
        words[_W + 5] = int(hold)
        words[_W] += 1
        return number

    def read_progress(self) -> Progress:
        words = self.words
        for _ in range(_SPINS_MAX):
            before = words[_P]
            if before % 2 == 0:
                found = Progress(words[_P + 1], words[_P + 2], words[_P + 3], words[_P + 4], words[_P + 5])
                if words[_P] == before:
                    self._progress = found
                    break
        return self._progress
