"""The client against the real API, and against servers that misbehave."""

import hashlib
import http.server
import io
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from orch.api import client as client_module
from orch.api import transport
from orch.api.client import Client
from orch.api.serve import ApiServer
from orch.control.home import Home, ServerRecord
from orch.model import errors
from orch.model.problems import JobFileError
from orch.model.states import State
from support.fake_control import FakeControlService

SPEC = {"run": "true", "ship": "never", "workdir": "/srv", "name": "a"}


@pytest.fixture
def control(tmp_path: Path) -> Iterator[FakeControlService]:
    control = FakeControlService(Home(tmp_path / "home"))
    yield control
    control.store.close()


@pytest.fixture
def server(control: FakeControlService) -> Iterator[ApiServer]:
    server = ApiServer(control, control.home.ensure_token())
    record(control.home, server.start())
    yield server
    server.stop()


@pytest.fixture
def client(control: FakeControlService, server: ApiServer) -> Iterator[Client]:
    client = Client.find(control.home, {})
    yield client
    client.close()


def record(home: Home, url: str) -> None:
    home.write_server(ServerRecord(url, 1, "0.1", "127.0.0.1:1"))


@contextmanager
def answering(status: int, body: bytes, **headers: str) -> Iterator[str]:
    """A server that gives every request the same answer."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


# From submit to the end


def test_submit_watch_and_cancel(client: Client, control: FakeControlService) -> None:
    job = client.submit(SPEC, name="other")["id"]
    assert job.startswith("other-")
    assert client.job(job)["state"] == "QUEUED"
    assert [one["id"] for one in client.jobs()] == [job]
    assert client.jobs(states=["RUNNING"]) == []
    assert client.cancel(job, now=True)["reason"] == "cancelled now"
    assert client.wait(job, timeout_s=30)["state"] == "CANCELLED"
    assert client.server()["jobs"] == {"CANCELLED": 1}
    client.stop_server()
    assert control.stopped


def test_all_pages_of_a_list(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = [client.submit(SPEC)["id"] for _ in range(5)][::-1]
    monkeypatch.setattr(client_module, "JOBS_PAGE", 2)
    assert [one["id"] for one in client.jobs()] == jobs
    assert [one["id"] for one in client.jobs(limit=3)] == jobs[:3]
    assert [one["id"] for one in client.jobs(limit=4)] == jobs[:4]


def test_code(client: Client, control: FakeControlService, tmp_path: Path) -> None:
    file = tmp_path / "code.zip"
    file.write_bytes(b"x" * 3_000_000)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert not client.has_code(digest)
    told: list[tuple[int, int]] = []
    client.upload_code(digest, file, on_progress=lambda *progress: told.append(progress))
    assert client.has_code(digest)
    assert told[0][0] < 3_000_000
    assert told[-1] == (3_000_000, 3_000_000)
    code = {"digest": digest, "size_bytes": 3_000_000, "git_commit": "c", "git_dirty": True}
    assert client.submit({"run": "true", "name": "a"}, code=code)["code"]["digest"] == digest
    with pytest.raises(errors.WrongUse, match="digest"):
        client.upload_code("0" * 64, file)


def test_check(client: Client) -> None:
    assert client.check(SPEC)["placeable"]
    assert client.check(SPEC | {"resources": {"cpus": 8}})["largest"] == {"cpus": 4}


def test_outputs(client: Client, control: FakeControlService) -> None:
    job = client.submit(SPEC)["id"]
    control.outputs_of[job] = {"a/b.txt": b"hello"}
    target, told = io.BytesIO(), []
    size = client.outputs(job, target, on_progress=lambda *progress: told.append(progress))
    assert size == len(target.getvalue()) == told[-1][0]
    assert zipfile.ZipFile(target).read("a/b.txt") == b"hello"


def test_outputs_that_break_off(client: Client, control: FakeControlService) -> None:
    job = client.submit(SPEC)["id"]
    control.outputs_of[job] = {"a": b"x" * 5000}
    control.broken_after = 3000
    with pytest.raises(errors.NoServer, match="broke off"):
        client.outputs(job, io.BytesIO())


def test_events_are_followed_to_the_end(client: Client, control: FakeControlService) -> None:
    job = client.submit(SPEC)["id"]
    seen = []
    for event in client.follow_events(job):
        seen.append(event["type"])
        if event["type"] == "Submitted":
            control.tell(job, {"type": "AgentUp"})
        elif event["type"] == "AgentUp":
            control.end(job, State.SUCCEEDED)
    assert seen == ["Submitted", "AgentUp", "Closed"]


def test_logs_are_followed_from_attempt_to_attempt(client: Client, control: FakeControlService) -> None:
    job = client.submit(SPEC)["id"]
    control.write_log(job, b"one\n")
    seen = []
    for part in client.follow_logs(job):
        seen.append((part.attempt, part.data))
        if len(seen) == 1:
            control.write_log(job, b"more\n")
        elif len(seen) == 2:
            control.write_log(job, b"two\n", attempt=2)
        else:
            control.end(job, State.SUCCEEDED)
    assert seen == [(1, b"one\n"), (1, b"more\n"), (2, b"two\n")]


def test_logs_that_are_there_now(client: Client, control: FakeControlService) -> None:
    job = client.submit(SPEC)["id"]
    assert list(client.follow_logs(job, follow=False)) == []
    control.write_log(job, b"one\ntwo\n")
    control.write_log(job, b"three\nfour", attempt=2)
    read = b"".join(part.data for part in client.follow_logs(job, follow=False))
    assert read == b"one\ntwo\nthree\nfour"
    control.end(job, State.SUCCEEDED)
    assert b"".join(part.data for part in client.follow_logs(job)) == read
    assert [part.data for part in client.follow_logs(job, tail=1)] == [b"four"]
    assert [part.data for part in client.follow_logs(job, attempt=1)] == [b"one\ntwo\n"]
    lines = [line for part in client.follow_logs(job, timestamps=True) for line in part.lines]
    assert [line["text"] for line in lines] == ["one", "two", "three", "four"]


def test_logs_of_a_job_that_never_ran(client: Client) -> None:
    job = client.submit(SPEC)["id"]
    client.cancel(job)
    assert list(client.follow_logs(job)) == []


# What goes wrong


def test_errors_arrive_as_what_they_are(client: Client) -> None:
    with pytest.raises(errors.NoSuchJob, match="nobody-1"):
        client.job("nobody-1")
    with pytest.raises(errors.NeverPlaceable, match="64"):
        client.submit(SPEC | {"resources": {"cpus": 64}})
    with pytest.raises(JobFileError) as refused:
        client.submit(SPEC | {"priority": "high", "evry": 1})
    assert {problem.path for problem in refused.value.problems} == {"priority", "evry"}
    assert "priority" in str(refused.value)


def test_whatever_is_typed_as_a_job_is_just_no_job(client: Client) -> None:
    for job in ("", ".", "..", "../../server", "a b", "ä", "a/b", "a?x=1", "%2e%2e", "x" * 300):
        for call in (client.job, client.cancel, client.wait, client.events, client.logs):
            with pytest.raises(errors.NoSuchJob):
                call(job)


def test_waiting_has_a_limit(client: Client) -> None:
    job = client.submit(SPEC)["id"]
    with pytest.raises(errors.TimedOut, match="QUEUED"):
        client.wait(job, timeout_s=0.05)


def test_no_server_is_known(tmp_path: Path) -> None:
    with pytest.raises(errors.NoServer, match="orch server start"):
        Client.find(Home(tmp_path), {})


def test_no_server_answers(client: Client, server: ApiServer) -> None:
    server.stop()
    for call in (client.server, client.jobs, lambda: client.job("a-1"), lambda: client.logs("a-1")):
        with pytest.raises(errors.NoServer, match="no server answers"):
            call()


def test_another_token(server: ApiServer, control: FakeControlService) -> None:
    client = Client.find(control.home, {"ORCH_URL": server.url, "ORCH_TOKEN": "wrong"})
    with pytest.raises(errors.NoServer, match="refuses the token"):
        client.server()
    client.close()
    client = Client.find(control.home, {"ORCH_URL": server.url + "/"})
    assert client.server()["pid"] == 1
    client.close()


@pytest.mark.parametrize("url", ["", "127.0.0.1:1", "ftp://x", "http://"])
def test_an_address_that_is_none(url: str) -> None:
    with pytest.raises(errors.WrongUse, match="address"):
        Client(url, "t")


@pytest.mark.parametrize(
    ("status", "body", "headers", "kind"),
    [
        (200, b"<html>", {}, errors.NoServer),
        (200, b"<html>", {"X_Orch_Api": "1"}, errors.NoServer),
        (200, b"[]", {"X_Orch_Api": "1"}, errors.NoServer),
        (302, b"", {"Location": "http://127.0.0.1:1/"}, errors.NoServer),
        (500, b"", {"X_Orch_Api": "1"}, errors.OrchError),
        (500, b'{"error": {"code": "internal", "message": "m"}}', {"X_Orch_Api": "1"}, errors.OrchError),
        (503, b"", {}, errors.NoServer),
    ],
)
def test_what_is_no_orch_server(
    status: int, body: bytes, headers: dict[str, str], kind: type[Exception]
) -> None:
    with answering(status, body, **headers) as url:
        client = Client(url, "t")
        with pytest.raises(kind):
            client.server()
        client.close()


def test_following_outlives_a_server_that_comes_back_elsewhere(
    client: Client, server: ApiServer, control: FakeControlService, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = client.submit(SPEC)["id"]
    gaps: list[str] = []
    client.tell_gaps(gaps.append)
    started: list[ApiServer] = []

    def instead_of_sleeping(_pause_s: float) -> None:
        if not started:
            control._bell = type(control.bell)()  # the old one went with its server
            started.append(ApiServer(control, control.home.ensure_token()))
            record(control.home, started[0].start())

    monkeypatch.setattr(transport.time, "sleep", instead_of_sleeping)
    seen = []
    for event in client.follow_events(job):
        seen.append(event["type"])
        if event["type"] == "Submitted":
            server.stop()
        if event["type"] == "AgentUp":
            control.end(job, State.SUCCEEDED)
        if len(seen) == 1:
            control.tell(job, {"type": "AgentUp"})
    assert seen == ["Submitted", "AgentUp", "Closed"]
    assert len(gaps) == 1
    assert client.url == started[0].url
    started[0].stop()


def test_a_submit_whose_answer_was_lost_is_repeated_and_is_one_job(
    client: Client, control: FakeControlService, monkeypatch: pytest.MonkeyPatch
) -> None:
    real: Callable[..., Any] = control.submit
    calls = []

    def lossy(submission: Any) -> Any:
        calls.append(submission.request)
        document = real(submission)
        if len(calls) == 1:
            raise errors.NoServer("the controller went away")
        return document

    monkeypatch.setattr(control, "submit", lossy)
    monkeypatch.setattr(transport.time, "sleep", lambda _: None)
    job = client.submit(SPEC)
    assert len(calls) == 2
    assert calls[0] == calls[1]
    assert [one["id"] for one in client.jobs()] == [job["id"]]


def test_the_client_is_light() -> None:
    heavy = ["ray", "torch", "pydantic", "fastapi", "sqlalchemy", "numpy", "fsspec", "yaml", "cryptography"]
    code = (
        "import sys, orch.api.client, orch.control.home;"
        f" print(*(name for name in {heavy!r} if name in sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == []
