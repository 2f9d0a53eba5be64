"""Logs of agents whose machine the server does not see."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import Any

import pytest

from orch.control import logcopies
from orch.control.home import Home
from orch.control.logcopies import LogCopies
from orch_workers.logs.worker_log import read_part

AGENT = ("a-1", 1, 0)


class Cluster:
    """One agent, whose log lies on another machine."""

    def __init__(self, log: Path) -> None:
        self.log, self.calls = log, 0
        self.trouble: Exception | None = None

    def agents(self) -> list[tuple[str, int, int]]:
        return [AGENT]

    def find_agent(self, job_id: str, attempt: int, rank: int) -> Any:
        return self.log if (job_id, attempt, rank) == AGENT else None

    def call(self, handle: Any, method: str, *args: Any, limit_s: float = 0) -> Any:
        assert method == "log_part"
        self.calls += 1
        if self.trouble is not None:
            raise self.trouble
        return read_part(handle, *args)


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path / "far.log")


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home").ensure()


@pytest.fixture
def copies(home: Home, cluster: Cluster) -> LogCopies:
    return LogCopies(home, cluster)


def write(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


def test_a_log_is_copied_as_it_grows(copies: LogCopies, cluster: Cluster, home: Home) -> None:
    copy = home.log_path(*AGENT)
    copies.round()
    assert not copy.exists(), "there is none yet"
    for data in (b"one\n", b"two\n"):
        write(cluster.log, data)
        copies.round()
    assert copy.read_bytes() == b"one\ntwo\n"
    assert copy.stat().st_mode & 0o777 == 0o600
    LogCopies(home, cluster).round()
    assert copy.read_bytes() == b"one\ntwo\n", "the next controller goes on where this one stood"


def test_long_logs_come_in_parts_and_whole_at_the_end(
    copies: LogCopies, cluster: Cluster, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logcopies, "PART_BYTES", 4)
    monkeypatch.setattr(logcopies, "PARTS_MAX", 2)
    write(cluster.log, b"0123456789abcdef!")
    copies.round()
    assert home.log_path(*AGENT).read_bytes() == b"01234567"
    copies.finish("b-1")
    assert home.log_path(*AGENT).read_bytes() == b"01234567"
    copies.finish("a-1")
    assert home.log_path(*AGENT).read_bytes() == cluster.log.read_bytes()


def test_a_log_that_the_server_sees_is_left_alone(copies: LogCopies, cluster: Cluster, home: Home) -> None:
    write(cluster.log, b"far")
    home.log_path(*AGENT).parent.mkdir(parents=True)
    home.log_path(*AGENT).write_bytes(b"here")
    copies.round()
    assert home.log_path(*AGENT).read_bytes() == b"here"
    assert cluster.calls == 0


def test_a_shared_home_that_is_slow_to_show_it(copies: LogCopies, cluster: Cluster, home: Home) -> None:
    """The agent's own file becomes visible between the look and the copy: nothing is written into it."""
    own = home.log_path(*AGENT)
    cluster.log = own
    own.parent.mkdir(parents=True)
    call = cluster.call

    def slow(*args: Any, **options: Any) -> Any:
        if not own.exists():
            own.write_bytes(b"mine")
        return call(*args, **options)

    cluster.call = slow  # type: ignore[method-assign]
    copies.round()
    copies.round()
    assert own.read_bytes() == b"mine"
    assert [path.name for path in own.parent.iterdir()] == [own.name]


def test_an_agent_that_cannot_be_asked_is_asked_again(
    copies: LogCopies, cluster: Cluster, home: Home
) -> None:
    write(cluster.log, b"one")
    cluster.trouble = AttributeError("an agent of an older version has no log_part")
    copies.round()
    calls = cluster.calls
    copies.finish("a-1")
    assert cluster.calls == calls, "its end is not held up"
    cluster.trouble = None
    copies.round()
    assert home.log_path(*AGENT).read_bytes() == b"one"


def test_of_two_controllers_one_writes(copies: LogCopies, cluster: Cluster, home: Home) -> None:
    write(cluster.log, b"one")
    copies.round()
    write(cluster.log, b"two")
    with home.log_path(*AGENT).open("r+b") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        copies.round()
        assert home.log_path(*AGENT).read_bytes() == b"one"
    copies.round()
    assert home.log_path(*AGENT).read_bytes() == b"onetwo"
