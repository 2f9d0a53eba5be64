"""The ends of a training process, its signals, and what it imports."""

from __future__ import annotations

import ast
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from fake_agent import PROCESS_LIMIT_S, SOURCES

import orch_workers.training
from orch_workers.training.connection import Connection
from orch_workers.training.errors import AgentLostError
from orch_workers.training.metrics import Metrics

HEAD = """
import os, random, signal, sys
import orch

run = orch.training(history=[])
run.step(loss=1.0)
run.step(loss=2.0)
"""
TRAINING = Path(orch_workers.training.__file__).parent


def told(agent):
    """(saved steps, whether it said that it finished)"""
    return [message["step"] for message in agent.of("saved")], bool(agent.of("finished"))


@pytest.mark.parametrize(
    ("tail", "status", "expected"),
    [
        ("", 0, ([1, 2], True)),
        ("sys.exit()", 0, ([1, 2], True)),
        ("run.finish()", 0, ([1, 2], True)),
        ("run.finish()\nsys.exit(3)", 3, ([1, 2], True)),
        ("sys.exit(3)", 3, ([1], False)),
        ("sys.exit('no')", 1, ([1], False)),
        ("raise ValueError", 1, ([1], False)),
        ("raise KeyboardInterrupt", -signal.SIGINT, ([1], False)),
        ("try: sys.exit(3)\nexcept SystemExit: run.step()", 0, ([1, 3], True)),
        ("os._exit(0)", 0, ([1], False)),
        ("if os.fork() == 0: sys.exit()\nos.wait()", 0, ([1, 2], True)),
        ("os.kill(os.getpid(), signal.SIGTERM)\nrun.step()", 75, ([1, 3], False)),
        (
            "os.kill(os.getpid(), signal.SIGTERM)\nos.kill(os.getpid(), signal.SIGTERM)",
            -signal.SIGTERM,
            ([1], False),
        ),
        ("run.finish()\nos.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM, ([1, 2], True)),
        (
            "if os.fork() == 0: os.kill(os.getpid(), signal.SIGTERM)\nassert os.wait()[1] == 15",
            0,
            ([1, 2], True),
        ),
    ],
    ids=lambda value: value.replace("\n", "; ") if isinstance(value, str) else "",
)
def test_what_an_end_means(agents, tail, status, expected):
    agent = agents()
    done = agent.run(HEAD + tail, check=False)
    assert done.returncode == status, done.stderr
    assert told(agent) == expected


def test_an_own_signal_handler_is_kept(agents):
    agent = agents()
    own = (
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(9))\n"
        + HEAD
        + "os.kill(os.getpid(), signal.SIGTERM)"
    )
    assert agent.run("import signal, sys\n" + own, check=False).returncode == 9


def test_twice_in_one_process_is_refused(agents):
    agent = agents()
    done = agent.run(HEAD + "orch.training()", check=False)
    assert done.returncode == 1
    assert "orch.training() was called twice in one process" in done.stderr


def test_a_forked_child_may_not_use_the_run(agents):
    done = agents().run(HEAD + "if os.fork() == 0: run.step()\nassert os.wait()[1] >> 8 == 1")
    assert "forked from the one that trains" in done.stderr


def test_a_process_of_the_script_that_trains_too_is_refused(agents):
    child = "\nimport subprocess\nchild = [sys.executable, '-c', 'import orch; orch.training()']\n"
    done = agents().run(HEAD + child + "assert subprocess.run(child).returncode == 1")
    assert "another process of this worker trains already" in done.stderr


def test_the_training_side_needs_the_standard_library_only():
    check = (
        "import sys; before = set(sys.modules); import orch, orch_workers.training.session;"
        "names = {name.split('.')[0] for name in set(sys.modules) - before};"
        "print(sorted(names - set(sys.stdlib_module_names)))"
    )
    env = {"PYTHONPATH": os.pathsep.join(SOURCES)}
    done = subprocess.run(
        [sys.executable, "-c", check],
        env=env,
        capture_output=True,
        text=True,
        timeout=PROCESS_LIMIT_S,
        check=True,
    )
    assert done.stdout.strip() == "['orch', 'orch_workers']"


@pytest.mark.parametrize("path", sorted(TRAINING.glob("*.py")), ids=lambda path: path.stem)
def test_the_training_side_is_python_3_8(path):
    tree = ast.parse(path.read_text(), feature_version=(3, 8))
    futures = [n for n in tree.body if isinstance(n, ast.ImportFrom) and n.module == "__future__"]
    assert [alias.name for node in futures for alias in node.names] == ["annotations"]


# the connection


@pytest.fixture
def pair(tmp_path, monkeypatch):
    """(a connection, the agent's end of it)"""
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("agent.sock")
        listener.listen()
        connection = Connection("agent.sock")
        other, _ = listener.accept()
        other.settimeout(PROCESS_LIMIT_S)
        with other:
            yield connection, other
        connection.close()


def test_answers_in_pieces_and_several_at_once(pair):
    connection, other = pair
    other.sendall(b'{"type": "busy"}\n{"type": "slot", "index": 1}\n{"typ')
    assert connection.request({"type": "save"}) == {"type": "busy"}
    assert connection.request({"type": "save"}) == {"type": "slot", "index": 1}
    other.sendall(b'e": "ok"}\n')
    assert connection.request({"type": "finished"}) == {"type": "ok"}


def test_what_may_be_lost_never_waits_and_never_tears_a_line(pair):
    connection, other = pair
    message = {"type": "metrics", "text": "x" * 1000}
    kept = 0
    while connection.offer(message):
        kept += 1
    assert not connection.offer(message)
    received = b""
    while len(received) < kept * 1000:  # the agent wakes up and reads
        received += other.recv(1 << 16)
    connection.offer({"type": "after"})
    connection.close()
    while more := other.recv(1 << 16):
        received += more
    lines = received.split(b"\n")
    assert lines.pop() == b""
    assert lines.pop() == b'{"type":"after"}'
    assert set(lines) == {b'{"type":"metrics","text":"' + b"x" * 1000 + b'"}'}
    assert len(lines) == kept


def test_an_agent_that_has_gone(pair):
    connection, other = pair
    other.close()
    with pytest.raises(AgentLostError, match=r"gone away|connection to the agent broke"):
        connection.request({"type": "save"})
    assert not connection.offer({"type": "metrics"})


def test_no_agent(tmp_path):
    with pytest.raises(AgentLostError, match="no agent answers at"):
        Connection(str(tmp_path / "nobody"))


# metrics that live on a device


class OnDevice:
    """A value that can be read, but only by waiting for its device."""

    class device:  # noqa: N801
        type = "npu"

    waited = False

    def __float__(self):
        OnDevice.waited = True
        return 4.0


def test_a_value_on_a_device_is_not_read_by_a_step():
    metrics = Metrics()
    metrics.put(1, 0, {"loss": OnDevice()})
    assert metrics.due() is None
    assert not OnDevice.waited
    assert metrics.read() == {"loss": 4.0}
