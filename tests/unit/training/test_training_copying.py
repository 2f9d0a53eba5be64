"""Copies on several threads: every byte once, wherever the work is cut."""

from __future__ import annotations

import os
import threading

import numpy as np
import pytest

from orch_workers.training import copying
from orch_workers.training.copying import copy_pairs, thread_count


@pytest.mark.parametrize("threads", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("sizes", [[10], [0, 1, 99], [40, 1, 0, 60], [1] * 50, []])
def test_every_byte_arrives_once(monkeypatch, rng, threads, sizes):
    monkeypatch.setattr(copying, "THREAD_BYTES_MIN", 1)
    sources = [np.frombuffer(rng.randbytes(size), np.uint8) for size in sizes]
    guarded = [np.full(size + 2, 7, np.uint8) for size in sizes]
    copy_pairs([(whole[1:-1], source) for whole, source in zip(guarded, sources, strict=True)], threads)
    for whole, source in zip(guarded, sources, strict=True):
        assert whole[1:-1].tobytes() == source.tobytes()
        assert (whole[0], whole[-1]) == (7, 7)


def test_a_failure_in_a_helper_is_raised_when_all_have_ended(monkeypatch):
    monkeypatch.setattr(copying, "THREAD_BYTES_MIN", 1)
    read_only = np.zeros(100, np.uint8)
    read_only.flags.writeable = False
    before = threading.active_count()
    with pytest.raises(ValueError, match="read-only"):
        copy_pairs(
            [(np.zeros(100, np.uint8), np.ones(100, np.uint8)), (read_only, np.ones(100, np.uint8))], 2
        )
    assert threading.active_count() == before


def test_no_more_threads_to_be_had(monkeypatch):
    def refuse(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(copying, "THREAD_BYTES_MIN", 1)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    target = np.zeros(100, np.uint8)
    copy_pairs([(target, np.ones(100, np.uint8))], 4)
    assert target.all()


@pytest.mark.parametrize(
    ("cores", "ranks", "expected"),
    [(2, "1", 2), (2, "2", 1), (2, "8", 1), (96, "8", 4), (8, "odd", 4), (8, "0", 4)],
)
def test_the_ranks_of_a_machine_share_its_cores(monkeypatch, cores, ranks, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", ranks)
    assert thread_count() == expected
