"""From a notice to an orderly departure: what is told, how the time is divided, what a second notice changes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap

import pytest

from orch.model.events import PreemptionNoticed
from orch_workers.preemption.leaving import (
    ANSWERED_MAX,
    FLUSH_SHARE_MAX,
    FLUSH_SHARE_MIN,
    Leaving,
    process_share_s,
)
from orch_workers.preemption.notice import Moment, Notice, deadline_in

LIMIT_S = 60.0


class FakeWorker:
    def __init__(self):
        self.ended, self.durable_s = False, None
        self.stops, self.saves = [], 0

    def stop(self, outcome, grace_s, reason="", until_s=None):
        self.stops.append((outcome, grace_s, reason, until_s))

    def save_soon(self):
        self.saves += 1


class FakeReports(list):
    def add(self, event):
        self.append(event)


@pytest.fixture
def worker():
    return FakeWorker()


@pytest.fixture
def reports():
    return FakeReports()


@pytest.fixture
def leaving(worker, reports, tmp_path):
    return made(worker, reports, tmp_path)


def made(worker, reports, tmp_path):
    path = tmp_path / "notices.json"
    return Leaving(worker, reports, attempt=2, rank=0, node_id="ab", grace_s=30.0, path=path)


def notice(left_s=20.0, key="k", kind="preempt", **more):
    deadline = None if left_s is None else deadline_in(left_s, Moment.now())
    return Notice("aws", kind, "it goes", key, deadline, **more)


def test_it_is_told_and_the_worker_leaves_with_a_share_of_the_time(worker, reports, leaving):
    given = notice(20)
    leaving.notice(given)
    (told,) = reports
    assert told == PreemptionNoticed(
        attempt=2,
        rank=0,
        source="aws",
        reason="it goes",
        deadline_us=round(given.deadline.wall_s * 1e6),
        node_id="ab",
    )
    ((outcome, grace_s, reason, until_s),) = worker.stops
    assert (outcome, reason, until_s) == ("left", "it goes", given.deadline.monotonic_s)
    assert grace_s == pytest.approx(20 * (1 - FLUSH_SHARE_MIN), abs=1)


@pytest.mark.parametrize(
    ("left_s", "durable_s", "share"),
    [
        (100, None, 1 - FLUSH_SHARE_MIN),
        (100, 1.0, 1 - FLUSH_SHARE_MIN),
        (100, 20.0, 0.6),
        (100, 1000.0, 1 - FLUSH_SHARE_MAX),
        (0, 5.0, 0),
    ],
)
def test_storage_gets_as_much_as_it_has_needed_before_within_bounds(left_s, durable_s, share):
    assert process_share_s(left_s, durable_s) == pytest.approx(left_s * share)


def test_no_deadline_is_the_jobs_grace_period(worker, leaving):
    leaving.notice(notice(None))
    assert worker.stops[0][1] == pytest.approx(30 * (1 - FLUSH_SHARE_MIN), abs=1)


def test_a_deadline_that_is_past_kills_at_once_and_still_flushes(worker, leaving):
    leaving.notice(notice(0))
    assert worker.stops[0][1] == 0


def test_a_warning_saves_and_stays(worker, reports, leaving):
    leaving.notice(notice(None, kind="rebalance"))
    assert (worker.stops, worker.saves) == ([], 1)
    assert (reports[0].leaves, reports[0].node_id) == (False, "")


def test_only_a_sooner_second_notice_stops_again(worker, reports, leaving):
    leaving.notice(notice(20, "a"))
    leaving.notice(notice(25, "b"))
    assert len(worker.stops) == 1
    leaving.notice(notice(5, "c"))
    assert len(worker.stops) == 2
    assert worker.stops[1][3] < worker.stops[0][3]
    assert len(reports) == 3  # all three are on record


def test_after_the_end_a_notice_says_nothing(worker, reports, leaving):
    worker.ended = True
    leaving.notice(notice())
    assert (worker.stops, reports) == ([], [])


def test_a_persons_wish_does_not_cordon_the_machine_nor_is_it_remembered(worker, reports, leaving, tmp_path):
    leaving.notice(notice(10, key="", machine=False))
    assert reports[0].node_id == ""
    assert made(worker, reports, tmp_path).answered == ()


def test_what_it_leaves_for_is_known_to_the_next_agent_here_a_warning_is_not(
    worker, reports, leaving, tmp_path
):
    leaving.notice(notice(10, "a"))
    leaving.notice(notice(None, "w", kind="rebalance"))
    assert made(worker, reports, tmp_path).answered == ("a",)
    for number in range(ANSWERED_MAX + 5):
        leaving.notice(notice(10, str(number)))
    answered = made(worker, reports, tmp_path).answered
    assert len(answered) == ANSWERED_MAX
    assert answered[-1] == str(ANSWERED_MAX + 4)


@pytest.mark.parametrize("text", ["", "{", "{}", "[1, null]", "\x00"])
def test_a_damaged_memory_is_an_empty_one(worker, reports, tmp_path, text):
    (tmp_path / "notices.json").write_text(text)
    assert made(worker, reports, tmp_path).answered == ()


def test_a_full_disk_does_not_keep_it_here(worker, reports, tmp_path):
    leaving = made(worker, reports, tmp_path / "missing")
    leaving.notice(notice())
    assert len(worker.stops) == 1


def test_sigterm_is_heard_while_the_main_thread_is_in_c():
    """As in a Ray worker, whose main thread runs Ray's loop: a Python handler would wait for it."""
    script = """
        import ctypes, os, threading
        from orch_workers.preemption import sigterm
        heard = threading.Semaphore(0)
        sigterm.install(heard.release)
        def follow():
            for word in ("ready", "heard", "again"):
                print(word, flush=True)
                heard.acquire()
        threading.Thread(target=follow).start()
        mutex = ctypes.create_string_buffer(64)
        libc = ctypes.CDLL(None)
        libc.pthread_mutex_lock(mutex)
        libc.pthread_mutex_lock(mutex)  # never returns, whatever signal comes
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        for word in ("ready", "heard", "again"):
            assert process.stdout.readline() == f"{word}\n"
            if word != "again":
                os.kill(process.pid, signal.SIGTERM)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
