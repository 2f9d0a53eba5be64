from __future__ import annotations

import contextlib
import json
import os
import queue
import socket
import threading

import pytest

from orch_workers.session import BusyError, SessionRefusedError, SessionServer
from orch_workers.training.agent_sink import AgentSink
from orch_workers.training.errors import RefusedError
from orch_workers.training.page import Page
from orch_workers.training.protocol import LINE_BYTES_MAX, PROTOCOL_VERSION
from orch_workers.training.slots import Slot

LIMIT_S = 30.0
WELCOME = {"generation": "000001.000002", "rules": {"steps": 5}, "restore": None}


class FakeAgent:
    """Writes down what it is told; answers as the test says."""

    def __init__(self):
        self.told = queue.SimpleQueue()
        self.slots = []
        self.fail_with = None

    def next(self):
        return self.told.get(timeout=LIMIT_S)

    def on_hello(self, hello):
        if self.fail_with:
            raise self.fail_with
        self.told.put(("hello", hello["pid"]))
        return WELCOME

    def on_save(self, size_bytes, *, step, reason, wait):
        if self.fail_with:
            raise self.fail_with
        self.told.put(("save", size_bytes, step, reason, wait))
        return self.slots.pop(0) if self.slots else None

    def on_saved(self, index, info):
        self.told.put(("saved", index, info["step"], info["epoch"], info["blocked_s"]))

    def __getattr__(self, name):
        return lambda *values: self.told.put((name.removeprefix("on_"), *values))


class Client:
    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(LIMIT_S)
        self.socket.connect(str(path))
        self.lines = self.socket.makefile("rb")

    def tell(self, kind, **fields):
        self.socket.sendall(json.dumps({"type": kind, **fields}).encode() + b"\n")

    def answer(self):
        """The next line, or None at the end of the connection."""
        try:
            line = self.lines.readline()
        except ConnectionResetError:
            return None
        return json.loads(line) if line else None

    def ask(self, kind, **fields):
        self.tell(kind, **fields)
        return self.answer()

    def hello(self, pid=1000, **fields):
        return self.ask("hello", **{"protocol": PROTOCOL_VERSION, "pid": pid, **fields})

    def close(self):
        self.lines.close()
        self.socket.close()


@pytest.fixture
def agent():
    return FakeAgent()


@pytest.fixture
def server(tmp_path, agent):
    server = SessionServer(tmp_path / "agent.sock", "/page", agent)
    yield server
    server.close()


@pytest.fixture
def connect(server, tmp_path):
    clients = []

    def connect():
        clients.append(Client(tmp_path / "agent.sock"))
        return clients[-1]

    yield connect
    for client in clients:
        client.close()


def test_hello_is_answered_with_what_the_agent_prepared(connect, server, agent):
    assert server.owner is None
    assert connect().hello(1234) == {
        "type": "welcome",
        "protocol": PROTOCOL_VERSION,
        "page": "/page",
        **WELCOME,
    }
    assert agent.next() == ("hello", 1234)
    assert server.owner == 1234


def test_every_message_arrives_in_order(connect, agent):
    client = connect()
    client.hello()
    agent.next()
    agent.slots = [(1, "/slot-1")]
    client.tell("restored", step=7, source="memory", seconds_s=0.5)
    assert client.ask("save", size_bytes=10, step=8, reason="due", wait=False) == {
        "type": "slot",
        "index": 1,
        "path": "/slot-1",
    }
    client.tell("saved", index=1, step=8, epoch=2, reason="due", blocked_s=0.25)
    assert client.ask("save", size_bytes=11, step=9, reason="last", wait=True) == {"type": "busy"}
    client.tell("save_failed", index=0, message="unknown type at model.x")
    client.tell("metrics", step=9, epoch=2, values={"loss": 0.1})
    client.tell("note", level="warning", message="inexact")
    client.tell("mismatch", message="fc.weight: 10 stored, 20 expected")
    assert client.ask("finished", step=9, epoch=2) == {"type": "ok"}
    assert [agent.next() for _ in range(9)] == [
        ("restored", 7, "memory", 0.5),
        ("save", 10, 8, "due", False),
        ("saved", 1, 8, 2, 0.25),
        ("save", 11, 9, "last", True),
        ("save_failed", 0, "unknown type at model.x"),
        ("metrics", 9, 2, {"loss": 0.1}),
        ("note", "warning", "inexact"),
        ("mismatch", "fc.weight: 10 stored, 20 expected"),
        ("finished", 9, 2),
    ]


def test_a_second_process_is_refused_with_a_sentence(connect, agent):
    first, second = connect(), connect()
    first.hello(1000)
    refused = second.hello(1001)
    assert refused["type"] == "refused"
    assert "process 1000 of this worker has called orch.training already" in refused["message"]
    assert "process 1001 calls it again" in refused["message"]
    assert second.answer() is None
    assert first.ask("finished", step=1, epoch=0) == {"type": "ok"}


def test_a_second_process_is_refused_after_the_first_has_ended_too(connect):
    first = connect()
    first.hello(1000)
    first.close()
    assert connect().hello(1001)["type"] == "refused"


def test_another_protocol_is_refused_with_both_numbers_and_the_place_stays_free(connect):
    refused = connect().hello(protocol=99)
    assert refused["type"] == "refused"
    assert f"protocol 99, the agent {PROTOCOL_VERSION}" in refused["message"]
    assert connect().hello()["type"] == "welcome"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (SessionRefusedError("no checkpoint can be restored"), "no checkpoint can be restored"),
        (OSError("disk full"), "the agent could not prepare the start: OSError: disk full"),
    ],
)
def test_what_keeps_the_agent_from_starting_is_said(connect, agent, error, words):
    agent.fail_with = error
    assert connect().hello() == {"type": "refused", "message": words}


def test_a_fault_of_the_agent_does_not_cut_off_training(connect, agent):
    client = connect()
    client.hello()
    agent.fail_with = RuntimeError("a bug")
    assert client.ask("save", size_bytes=1, step=1, reason="due", wait=False) == {"type": "busy"}
    agent.fail_with = None
    agent.slots = [(0, "/slot-0")]
    assert client.ask("save", size_bytes=1, step=1, reason="due", wait=False)["type"] == "slot"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"not json\n", "no JSON"),
        (b"[1]\n", "no JSON object"),
        (b"[" * 100_000 + b"\n", "no JSON"),
        (b'{"type": "dance"}\n', "unknown message 'dance'"),
        (
            b'{"type": "save", "size_bytes": "1", "step": 1, "reason": "", "wait": false}\n',
            "size_bytes is '1'",
        ),
        (b'{"type": "save", "size_bytes": -1, "step": 1, "reason": "", "wait": false}\n', "negative"),
        (b'{"type": "saved", "index": true, "step": 1}\n', "index is True"),
        (b'{"type": "finished"}\n', "step is None"),
        (b'{"type": "hello", "protocol": 1, "pid": 1}\n', "a second hello"),
        (b'{"type": 7}\n', "unknown message 7"),
        (b"x" * (LINE_BYTES_MAX + (1 << 17)), "a line longer than"),
    ],
)
def test_what_is_no_message_ends_the_connection_and_is_told(connect, agent, line, words):
    client = connect()
    client.hello()
    agent.next()
    with contextlib.suppress(BrokenPipeError):  # the agent does not read it to the end
        client.socket.sendall(line)
    kind, level, message = agent.next()
    assert (kind, level) == ("note", "error")
    assert words in message
    assert client.answer() is None


@pytest.mark.parametrize("kind", ["save", "dance"])
def test_the_first_message_must_be_hello(connect, kind):
    answer = connect().ask(kind)
    assert answer["type"] == "refused"
    assert "must be hello" in answer["message"]


def test_a_line_that_comes_in_pieces_is_one_message(connect, agent):
    client = connect()
    for byte in json.dumps({"type": "hello", "protocol": PROTOCOL_VERSION, "pid": 5}).encode() + b"\n":
        client.socket.sendall(bytes([byte]))
    assert client.answer()["type"] == "welcome"


def test_close_ends_the_connection_frees_the_path_and_can_be_repeated(connect, server, tmp_path):
    client = connect()
    client.hello()
    server.close()
    server.close()
    assert client.answer() is None
    assert not (tmp_path / "agent.sock").exists()


def test_close_does_not_wait_for_a_hello_that_storage_keeps_waiting(connect, server, agent):
    entered, leave = threading.Event(), threading.Event()

    def block(hello):
        entered.set()
        leave.wait(LIMIT_S)
        return {}

    agent.on_hello = block
    connect().tell("hello", protocol=PROTOCOL_VERSION, pid=5)
    assert entered.wait(LIMIT_S)
    server.close()
    leave.set()


def test_who_must_have_a_slot_is_asked_again_until_there_is_one(connect, agent):
    answers = [BusyError, BusyError, (1, "/slot-1")]

    def on_save(size_bytes, *, step, reason, wait):
        answer = answers.pop(0)
        if answer is BusyError:
            raise BusyError
        return answer

    agent.on_save = on_save
    client = connect()
    client.hello()
    asked = client.ask("save", size_bytes=1, step=1, reason="last", wait=True)
    assert asked == {"type": "slot", "index": 1, "path": "/slot-1"}


def test_after_the_end_no_handler_hears_from_a_process_that_was_waiting_for_a_slot(connect, server, agent):
    """It would be given one that nobody fills and nobody takes back, and be taken for the next process."""
    asked, ended = threading.Event(), threading.Event()
    late = []

    def on_save(size_bytes, *, step, reason, wait):
        if ended.is_set():
            late.append(step)
        asked.set()
        raise BusyError

    agent.on_save = on_save
    before = set(threading.enumerate())
    client = connect()
    client.hello()
    client.tell("save", size_bytes=1, step=1, reason="last", wait=True)
    assert asked.wait(LIMIT_S)
    client.close()
    server.end()
    ended.set()
    for thread in set(threading.enumerate()) - before:
        thread.join(LIMIT_S)
        assert not thread.is_alive()
    assert late == []


def test_what_a_process_said_last_is_heard_before_its_end(connect, server, agent):
    client = connect()
    client.hello()
    for step in range(200):
        client.tell("metrics", step=step, epoch=0, values={})
    client.tell("mismatch", message="another shape")
    client.close()
    server.end()
    told = [agent.told.get_nowait() for _ in range(202)]  # and the hello
    assert told[-1] == ("mismatch", "another shape")


def test_a_socket_left_by_a_killed_agent_is_replaced(tmp_path, agent):
    path = tmp_path / "agent.sock"
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(path))
    left.close()
    server = SessionServer(path, "/page", agent)
    client = Client(path)
    assert client.hello()["type"] == "welcome"
    assert path.stat().st_mode & 0o777 == 0o600
    client.close()
    server.close()


def test_a_path_that_no_socket_can_have_is_refused_with_the_numbers(tmp_path, agent):
    path = tmp_path / ("x" * 120)
    with pytest.raises(ValueError, match=f"may have 107 bytes, this has {len(os.fsencode(path))}"):
        SessionServer(path, "/page", agent)


def test_the_training_sides_own_end_understands_it(tmp_path, agent):
    """Not a client made for the test: the one that runs inside jobs."""
    Page.make(str(tmp_path / "page"))
    page = Page(str(tmp_path / "page"))
    Slot.create(str(tmp_path / "slot-1"), 4096)
    agent.slots = [(1, str(tmp_path / "slot-1"))]
    server = SessionServer(tmp_path / "agent.sock", str(tmp_path / "page"), agent)
    sink = AgentSink(str(tmp_path / "agent.sock"), {"torch": "2.13.0"}, restore=True)
    assert sink.generation == (1, 2)
    page.put_word(save_at=4, stop=False)
    assert sink.progress(3, 1).save_at == 4
    assert page.read_progress().step == 3
    grant = sink.grant(100, 4, "due", wait=False)
    assert grant is not None
    sink.saved(grant, {"step": 4, "epoch": 1, "reason": "due", "blocked_s": 0.125})
    assert sink.grant(100, 5, "due", wait=False) is None
    sink.restored(0, "storage", 0.5)
    sink.note("info", "hello")
    with pytest.raises(RefusedError, match="of this worker has called"):
        AgentSink(str(tmp_path / "agent.sock"), {}, restore=True)
    sink.finished(5, 1)
    kinds = [agent.next()[0] for _ in range(7)]
    assert kinds == ["hello", "save", "saved", "save", "restored", "note", "finished"]
    sink.close()
    server.close()
    page.close()
