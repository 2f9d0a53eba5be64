"""The file that has a controller end itself: once, at its place, and not at all without it."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from orch.control.killpoints import FILE_NAME, STRUCK_NAME, KillPoints, places
from orch.model.commands import RequestGang
from orch.model.events import AgentUp, TurnCame


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    signals: list[int] = []
    monkeypatch.setattr(signal, "pthread_kill", lambda _thread, number: signals.append(number))
    return signals


def test_without_the_file_nothing_happens(tmp_path: Path, sent: list[int]) -> None:
    points = KillPoints(tmp_path)
    points.look()
    points.here(TurnCame(), "before")
    assert (sent, list(tmp_path.iterdir())) == ([], [])


def test_each_line_strikes_once_and_in_its_turn(tmp_path: Path, sent: list[int]) -> None:
    (tmp_path / FILE_NAME).write_text("TurnCame:inside\nRequestGang:after stop\n")
    points = KillPoints(tmp_path)
    points.look()
    points.here(RequestGang(attempt=1), "after")
    points.here(AgentUp(attempt=1, rank=0), "inside")
    points.here(TurnCame(), "before")
    assert sent == []
    points.here(TurnCame(), "inside")
    points.here(TurnCame(), "inside")
    assert sent == [signal.SIGKILL]
    points = KillPoints(tmp_path)
    points.look()
    points.here(RequestGang(attempt=1), "after")
    points.look()
    points.here(RequestGang(attempt=1), "after")
    assert sent == [signal.SIGKILL, signal.SIGSTOP]
    assert [line.split()[:2] for line in (tmp_path / STRUCK_NAME).read_text().splitlines()] == [
        ["armed", "TurnCame:inside"],
        ["struck", "TurnCame:inside"],
        ["armed", "RequestGang:after"],
        ["struck", "RequestGang:after"],
    ]


def test_a_file_that_is_gone_disarms(tmp_path: Path, sent: list[int]) -> None:
    (tmp_path / FILE_NAME).write_text("TurnCame:before\n")
    points = KillPoints(tmp_path)
    points.look()
    (tmp_path / FILE_NAME).unlink()
    points.look()
    points.here(TurnCame(), "before")
    assert sent == []


def test_every_event_and_command_has_its_places() -> None:
    assert {"Submitted:before", "Closed:inside", "Adopted:after", "CloseJob:done"} <= set(places())
