"""`orch server run`: what it starts, what it stays beside, and what it does when it is told to end."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from orch.cli import foreground
from orch.cli.connect import Target
from orch.cli.foreground import Foreground
from orch.cli.output import progress
from orch.control.home import Home
from orch.control.raysettings import CLUSTER, DETECTION, cluster_environment
from orch.model.errors import NoServer, WrongUse
from support.server import wait_for


class Server:
    """What `orch server run` has started and stopped, in order; it answers while `listening` is open."""

    def __init__(self, home: Home) -> None:
        self.home, self.calls = home, []
        self.fails = 0
        self._listening: socket.socket | None = None

    def start(self, *_: Any, **amounts: Any) -> dict[str, str]:
        self.calls.append("start")
        if len(self.calls) - 1 in range(1, 1 + self.fails):
            raise NoServer("it does not start")
        self._listening = socket.create_server(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        record = {"url": url, "pid": 1, "version": "0", "ray_address": "127.0.0.1:6379"}
        self.home.server_json.touch(mode=0o600)
        self.home.server_json.write_text(json.dumps(record))
        return record

    def stop(self, *_: Any) -> None:
        self.calls.append("stop")

    def die(self) -> None:
        assert self._listening is not None
        self._listening.close()
        self._listening = None

    def close(self) -> None:
        if self._listening is not None:
            self.die()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    server = Server(Home(tmp_path / "home").ensure())
    monkeypatch.setattr(foreground, "start_server", server.start)
    monkeypatch.setattr(foreground, "stop_server", server.stop)
    monkeypatch.setattr(foreground, "LOOK_S", 0.01)
    monkeypatch.setattr(foreground, "HEAD_POLL_S", 0.01)
    yield server
    server.close()


@pytest.fixture
def cluster(server: Server) -> Iterator[Target]:
    """A Ray that answers."""
    with socket.create_server(("127.0.0.1", 0)) as ray:
        yield Target("ray", f"127.0.0.1:{ray.getsockname()[1]}", server.home)


def serve(target: Target, then: Callable[[], object], number: int = signal.SIGTERM, **options: Any) -> None:
    """Until `then` is through, in a thread of its own; after that it is told to end."""

    def act() -> None:
        try:
            then()
        finally:
            os.kill(os.getpid(), number)

    with progress() as shown:
        acting = threading.Thread(target=act)
        acting.start()
        Foreground(target, shown, **options).serve()
        acting.join()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_stays_until_it_is_told_to_end(server: Server, number: int, capsys: Any) -> None:
    before = signal.getsignal(number)
    serve(Target("home", "", server.home), lambda: wait_for("it is up", lambda: server.calls), number)
    assert server.calls == ["start", "stop"]
    assert "the server answers at http://127.0.0.1:" in capsys.readouterr().err
    assert signal.getsignal(number) is before


def test_a_server_that_stays_away_is_started_again(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foreground, "AWAY_LIMIT_S", 0.05)
    server.fails = 1

    def lose() -> None:
        wait_for("it is up", lambda: server.calls)
        server.die()
        wait_for("it was started again", lambda: len(server.calls) == 3 and server._listening)

    serve(Target("home", "", server.home), lose)
    assert server.calls == ["start", "start", "start", "stop"]


def test_one_that_cannot_be_started_again_is_given_up(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(foreground, "AWAY_LIMIT_S", 0.0)
    server.fails = foreground.TRIES_MAX
    start = server.start
    monkeypatch.setattr(foreground, "start_server", lambda *a, **k: (start(*a, **k), server.die())[0])
    with progress() as shown, pytest.raises(NoServer, match="does not start"):
        Foreground(Target("home", "", server.home), shown).serve()
    assert server.calls == ["start"] * 4 + ["stop"]


def test_the_head_of_the_cluster_comes_and_goes_with_it(
    server: Server, cluster: Target, tmp_path: Path
) -> None:
    told = tmp_path / "told"
    ray = f"sh -c 'trap \"echo end >> {told}; exit\" TERM; env > {told}; while :; do sleep 0.02; done'"
    serve(cluster, lambda: wait_for("both are up", lambda: server.calls and told.exists()), ray=ray)
    assert server.calls == ["start", "stop"]
    lines = told.read_text().splitlines()
    assert lines[-1] == "end"
    assert {f"{name}={value}" for name, value in cluster_environment({}).items()} <= set(lines)


def test_a_head_that_dies_ends_it(server: Server, cluster: Target) -> None:
    with progress() as shown, pytest.raises(NoServer, match="exit code 3"):
        Foreground(cluster, shown, ray="sh -c 'exit 3'").serve()
    assert server.calls[-1] == "stop"


def test_a_head_that_never_answers_is_given_up(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foreground, "HEAD_LIMIT_S", 0.05)
    with progress() as shown, pytest.raises(NoServer, match="does not answer"):
        Foreground(Target("ray", "127.0.0.1:1", server.home), shown, ray="sleep 100").serve()


def test_what_runs_on_the_cluster_can_be_left_at_work(server: Server, cluster: Target) -> None:
    serve(cluster, lambda: wait_for("it is up", lambda: server.calls), leave=True)
    assert server.calls == ["start"]


@pytest.mark.parametrize("options", [{"ray": "ray start --head"}, {"leave": True}])
def test_both_are_for_clusters(server: Server, options: dict[str, Any]) -> None:
    with progress() as shown, pytest.raises(WrongUse, match="--cluster"):
        Foreground(Target("home", "", server.home), shown, **options)


def test_a_server_elsewhere_is_not_run_from_here(server: Server) -> None:
    with progress() as shown, pytest.raises(WrongUse, match="on that machine"):
        Foreground(Target("ssh", "ssh://host", server.home), shown)


# What Ray needs on a cluster


def test_the_environment_of_a_cluster_as_lines_for_a_shell(cli: Any) -> None:
    told = cli.ok("server", "environment")
    assert "export RAY_AUTH_MODE=token\n" in told
    assert all(
        line.startswith("export RAY_") or line == "export PYTHONSAFEPATH=1" for line in told.splitlines()
    )
    assert cli.json("server", "environment")["environment"] == cluster_environment()


def test_what_the_operator_has_set_goes_before() -> None:
    own = dict.fromkeys((*DETECTION, *CLUSTER), "7")
    assert cluster_environment(own).items() >= own.items()
    assert cluster_environment({"RAY_USAGE_STATS_ENABLED": "1"})["RAY_USAGE_STATS_ENABLED"] == "0"
    assert "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER" not in cluster_environment({}), "that is for one machine"
