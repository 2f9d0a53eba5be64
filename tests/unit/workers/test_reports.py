from __future__ import annotations

import errno
from concurrent.futures import ThreadPoolExecutor

import pytest

from orch.model.events import CheckpointCommitted, ProcessStarted, RestartDecided, WorkerEnded
from orch.model.generation import Generation
from orch_workers.journal import Journal, read_journal
from orch_workers.reports import Reports
from support.workers import LIMIT_S


def started(attempt, restart):
    return ProcessStarted(generation=Generation(attempt, restart), rank=0, pid=7)


def decided(attempt, restart):
    return RestartDecided(generation=Generation(attempt, restart), reason="", charge_to="failures")


def ended(attempt, outcome, reason=""):
    return WorkerEnded(attempt=attempt, rank=0, outcome=outcome, reason=reason)


def types_of(answer):
    return [entry["event"]["type"] for entry in answer["entries"]]


def test_entries_are_numbered_journalled_and_told_from_the_cursor_on(tmp_path):
    reports = Reports(tmp_path, 1, 0)
    reports.add(started(1, 1), note="beside")
    reports.add(ended(1, "succeeded"))
    told = reports.wait(0, 0)
    assert [entry["seq"] for entry in told["entries"]] == [1, 2]
    assert told["entries"][0]["extra"] == {"note": "beside"}
    assert types_of(reports.wait(1, 0)) == ["WorkerEnded"]
    assert read_journal(tmp_path / "journal-000001.jsonl") == told["entries"]


def test_progress_is_told_once_and_only_the_newest(tmp_path):
    reports = Reports(tmp_path, 1, 0)
    reports.progress({"step": 1})
    reports.progress({"step": 2})
    assert reports.wait(0, 0) == {"entries": [], "progress": {"step": 2}}
    assert reports.wait(0, 0) == {"entries": [], "progress": None}


def test_who_waits_is_woken_by_an_entry(tmp_path):
    reports = Reports(tmp_path, 1, 0)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(reports.wait, 0, LIMIT_S)
        reports.add(started(1, 1))
        assert types_of(waiting.result(LIMIT_S)) == ["ProcessStarted"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), ValueError("too long")])
def test_a_journal_that_cannot_be_written_does_not_stop_the_reports(tmp_path, monkeypatch, error):
    reports = Reports(tmp_path, 1, 0)

    def append(self, entry):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "append", append)
        reports.add(started(1, 1))
    reports.add(ended(1, "succeeded"))
    assert types_of(reports.wait(0, 0)) == ["ProcessStarted", "WorkerEnded"]
    assert [entry["seq"] for entry in read_journal(tmp_path / "journal-000001.jsonl")] == [2]


def test_a_successor_has_the_entries_of_all_before_it_oldest_first(tmp_path):
    for attempt in (1, 2):
        Reports(tmp_path, attempt, 0).add(started(attempt, 1))
    third = Reports(tmp_path, 3, 0)
    assert [entry["attempt"] for entry in third.backlog] == [1, 2]
    third.add(started(3, 1))
    assert [entry["seq"] for entry in third.wait(0, 0)["entries"]] == [1]


def test_one_who_comes_again_in_the_same_attempt_goes_on_counting(tmp_path):
    first = Reports(tmp_path, 1, 0)
    first.add(started(1, 1))
    first.add(decided(1, 2))
    again = Reports(tmp_path, 1, 0)
    again.add(started(1, 3))
    assert [entry["seq"] for entry in again.wait(0, 0)["entries"]] == [3]


def test_what_is_left_behind_is_the_highest_restart_and_the_newest_end(tmp_path):
    assert Reports(tmp_path, 1, 0).left_behind(1) == (0, None)
    first = Reports(tmp_path, 1, 0)
    first.add(started(1, 1))
    first.add(decided(1, 2))
    first.add(CheckpointCommitted(generation=Generation(1, 9), step=1))
    first.add(ended(1, "failed", "it crashed"))
    assert Reports(tmp_path, 1, 0).left_behind(1)[0] == 2
    restart, end = Reports(tmp_path, 2, 0).left_behind(2)
    assert restart == 0
    assert (end["outcome"], end["reason"]) == ("failed", "it crashed")


def test_an_end_that_was_followed_by_another_attempt_is_no_end_any_more(tmp_path):
    Reports(tmp_path, 1, 0).add(ended(1, "left"))
    Reports(tmp_path, 2, 0).add(started(2, 1))
    assert Reports(tmp_path, 3, 0).left_behind(3) == (0, None)


def test_a_damaged_journal_is_set_aside_and_the_others_are_read(tmp_path):
    Reports(tmp_path, 1, 0).add(started(1, 1))
    Reports(tmp_path, 2, 0).add(started(2, 1))
    damaged = tmp_path / "journal-000001.jsonl"
    damaged.write_bytes(b"\0\0\0\n" + damaged.read_bytes())
    third = Reports(tmp_path, 3, 0)
    assert [entry["attempt"] for entry in third.backlog] == [2]
    assert (tmp_path / "journal-000001.damaged").exists()
    assert [entry["attempt"] for entry in Reports(tmp_path, 4, 0).backlog] == [2]


def test_a_torn_last_line_is_left_out(tmp_path):
    Reports(tmp_path, 1, 0).add(started(1, 1))
    with (tmp_path / "journal-000001.jsonl").open("ab") as file:
        file.write(b'{"attempt": 1, "ra')
    assert len(Reports(tmp_path, 2, 0).backlog) == 1
