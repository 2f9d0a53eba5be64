"""The API as an attacker meets it: a web page in a browser on the same machine, and whoever reaches the port."""

from __future__ import annotations

import hashlib
import itertools
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from orch.api import connection, gate
from orch.api.limits import HEAD_BYTES_MAX
from orch.api.serve import ApiServer
from support.fake_control import FakeControlService
from support.live_api import SPEC, TOKEN, Api, submit
from support.server import wait_for

METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECTED")
EVIL = "https://evil.example"
JSON = "application/json"


def granted(headers: Any) -> list[str]:
    return [name for name in headers if name.lower().startswith("access-control-")]


# A page of another site. The browser sends no token of ours; what it has to learn is that nothing is allowed.


def test_no_method_works_from_another_site(api: Api) -> None:
    for method in METHODS:
        for path in ("/jobs", "/jobs/a-1", "/jobs/a-1/cancel", "/server/stop", "/nothing"):
            for more in ({"Authorization": ""}, {}):
                answer = api(method, path, Origin=EVIL, Content_Type="text/plain", **more)
                assert answer.status == 403, (method, path)
                assert not granted(answer.headers)


def test_a_preflight_is_granted_nothing(api: Api, server: ApiServer) -> None:
    """Asked without a token, as browsers do; also one that says that it comes from a page of our own."""
    origins = ((EVIL, 403), ("null", 403), (server.url, 401))
    for asked, (origin, status) in itertools.product(("GET", "POST", "PUT", "DELETE"), origins):
        answer = api(
            "OPTIONS", "/jobs/a-1/cancel", Origin=origin, Authorization="",
            Access_Control_Request_Method=asked,
            Access_Control_Request_Headers="authorization,content-type",
            Access_Control_Request_Private_Network="true",
        )  # fmt: skip
        assert answer.status == status
        assert not granted(answer.headers)


def test_a_form_that_needs_no_preflight_is_refused(api: Api, control: FakeControlService) -> None:
    """A plain form, sent by a page under a name that leads here (DNS rebinding), with the cookies of nobody."""
    job = submit(api)
    port = api.url.split(":")[2].partition("/")[0]
    for more in (
        {"Origin": EVIL},
        {"Host": f"evil.example:{port}", "Origin": f"http://evil.example:{port}"},
        {"Cookie": f"token={TOKEN}; Authorization=Bearer {TOKEN}"},
        {},
    ):
        for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
            answer = api(
                "POST", f"/jobs/{job}/cancel?token={TOKEN}&access_token={TOKEN}", b'{"now": true}',
                **{"Authorization": "", "Content_Type": kind, **more},
            )  # fmt: skip
            assert answer.status in {401, 403}
    assert control.job(job)["state"] == "QUEUED"


def test_there_is_nothing_to_delete(api: Api, control: FakeControlService) -> None:
    job = submit(api)
    for method in ("DELETE", "PATCH", "TRACE", "OPTIONS", "PUT"):
        assert api.error(method, f"/jobs/{job}")[0] == 405
    assert control.store.state(job)


def test_answers_are_for_no_frame_and_no_cache(api: Api) -> None:
    for path in ("/jobs", "/nothing"):
        headers = api("GET", path).headers
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cache-Control"] == "no-store"


# Ids and names that are paths

TRAVERSALS = (
    "..", "../..", "..%2f..%2ftoken", "%2e%2e", "%2e%2e%2ftoken", "..%252f..%252ftoken", "..%5c..%5ctoken",
    "....//token", "%00", "a-1%00.json", "a-1%0a", "a-1%2fjobs", "/etc/passwd", "%2fetc%2fpasswd", "~root", "a-1;x",
    "%c0%ae%c0%ae%2f", "a" * 64, "a" * 5000, "-a", "A-1", "a_1", "a-1%20", "a%F0%9F%92%A3",
)  # fmt: skip


CALLS = (
    ("GET", "/jobs/{}"), ("GET", "/jobs/{}/logs"), ("GET", "/jobs/{}/events"), ("GET", "/jobs/{}/outputs"),
    ("GET", "/jobs/{}/wait"), ("POST", "/jobs/{}/cancel"), ("POST", "/jobs/{}/preempt"), ("PUT", "/jobs/{}/secrets"),
    ("POST", "/jobs/{}/recover"), ("PUT", "/code/{}"), ("HEAD", "/code/{}"),
)  # fmt: skip


def test_no_name_leaves_its_place(api: Api, control: FakeControlService) -> None:
    token = control.home.ensure_token()
    before = sorted(control.home.root.rglob("*"))
    for name in TRAVERSALS:
        for method, path in CALLS:
            answer = api(method, path.format(name), b"{}", Content_Type=JSON)
            assert answer.status in {400, 404, 405}, (method, path, name)
            assert token not in answer.data.decode(errors="replace")
    assert sorted(control.home.root.rglob("*")) == before


def test_no_name_of_a_job_is_a_path(api: Api, control: FakeControlService) -> None:
    for name in ("../x", "/x", "a/b", "a\\b", "..", "A", "", "x" * 99, "a\0", "-x"):
        for body in ({"spec": SPEC | {"name": name}}, {"spec": SPEC, "name": name}):
            assert api.error("POST", "/jobs", body)[0] == 400, name
    assert control.store.jobs() == []


def test_ranks_and_attempts_are_numbers(api: Api) -> None:
    job = submit(api)
    for query in ("rank=../../token", "rank=-1", "attempt=..", "attempt=0", "offset=-1", f"rank={2**60}"):
        assert api.error("GET", f"/jobs/{job}/logs?{query}")[0] == 400, query


def test_answers_are_not_held_back(server: ApiServer) -> None:
    """asyncio turns Nagle's algorithm off for sockets that say that they are TCP; else every answer is 40 ms late."""
    assert server._socket.proto == socket.IPPROTO_TCP


STORED = {"url": "/srv/x", "spec": SPEC, "submitted_us": 1, "attempt": 1}
END = {"state": "FAILED", "ended_us": 1}
POINT = {"generation": "000001.000001", "step": 1, "committed_us": 1}


def test_no_number_of_a_stored_job_is_too_large_for_the_store(api: Api) -> None:
    """They come from a file in storage, which anybody may have written."""
    for number in (2**63, 10**30, 10**400, -(2**40)):
        for wrong in (
            {"submitted_us": number}, {"attempt": number}, {"step": number}, {"seed": number},
            {"end": END | {"ended_us": number}}, {"end": END | {"exit_code": number}},
            {"checkpoints": [POINT | {"step": number}]}, {"checkpoints": [POINT | {"epoch": number}]},
            {"checkpoints": [POINT | {"committed_us": number}]}, {"checkpoints": [POINT | {"size_bytes": number}]},
        ):  # fmt: skip
            assert api.error("POST", "/jobs/a-1/recover", STORED | wrong)[0] == 400, wrong
    largest = {
        "submitted_us": 253_402_300_799_999_999,
        "step": 2**63 - 1,
        "end": END | {"exit_code": -(2**31)},
    }
    assert api("POST", "/jobs/a-1/recover", STORED | largest | {"checkpoints": [POINT]}).status == 200
    assert api("GET", "/jobs").status == api("GET", "/jobs/a-1").status == 200


# Too much, and too slow


@contextmanager
def connected(server: ApiServer) -> Iterator[socket.socket]:
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as found:
        yield found


def head(method: str, path: str, *more: str, token: str = TOKEN) -> bytes:
    lines = [f"{method} /api/v1{path} HTTP/1.1", "Host: 127.0.0.1", f"Authorization: Bearer {token}", *more]
    return "\r\n".join([*lines, "", ""]).encode()


def closed(found: socket.socket) -> bytes:
    """Everything until the server has closed the connection."""
    seen = b""
    try:
        while piece := found.recv(65536):
            seen += piece
    except ConnectionError:
        pass
    return seen


def test_a_head_without_end(server: ApiServer, api: Api) -> None:
    with connected(server) as found:
        found.sendall(b"GET / HTTP/1.1\r\nX: " + b"x" * (HEAD_BYTES_MAX + 1))
        assert closed(found).startswith(b"HTTP/1.1 4")
    with connected(server) as found:
        found.sendall(head("GET", "/" + "x" * HEAD_BYTES_MAX, "Connection: close"))
        assert closed(found).startswith(b"HTTP/1.1 4")
    assert api("GET", "/server").status == 200


@pytest.mark.parametrize("sent", [b"", b"G", b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: "])
def test_a_client_that_never_comes_to_the_point(
    sent: bytes, control: FakeControlService, monkeypatch: Any
) -> None:
    """One that connects and says nothing, and one that stops within its headers; nobody has a token to show yet."""
    monkeypatch.setattr(connection, "HEAD_LIMIT_S", 0.05)
    with served(control) as server, connected(server) as found:
        found.sendall(sent)
        assert closed(found) == b""


def test_a_client_that_trickles(control: FakeControlService, monkeypatch: Any) -> None:
    """Every byte in time, and never the last one: the limit is for the whole head."""
    monkeypatch.setattr(connection, "HEAD_LIMIT_S", 0.2)
    with served(control) as server, connected(server) as found:
        found.settimeout(0.02)
        with pytest.raises(ConnectionError):
            _until_refused(lambda: found.sendall(b"x"), found)


def _until_refused(send: Callable[[], None], found: socket.socket) -> None:
    for _ in range(10_000):
        send()
        try:
            if not found.recv(1):
                raise ConnectionResetError
        except TimeoutError:
            continue


def test_a_second_request_has_the_same_limit(control: FakeControlService, monkeypatch: Any) -> None:
    monkeypatch.setattr(connection, "HEAD_LIMIT_S", 0.2)
    with served(control) as server, connected(server) as found:
        found.sendall(head("HEAD", "/server"))
        assert found.recv(65536).startswith(b"HTTP/1.1 405")
        found.sendall(b"GET /api")
        closed(found)


def test_a_body_that_is_refused_is_not_read_for_ever(control: FakeControlService, monkeypatch: Any) -> None:
    """The refusal has been sent; who goes on sending all the same is cut off."""
    monkeypatch.setattr(connection, "HEAD_LIMIT_S", 0.2)
    with served(control) as server, connected(server) as found:
        found.sendall(head("PUT", f"/code/{'a' * 64}", "Content-Length: 100000000", token="wrong"))
        assert found.recv(65536).startswith(b"HTTP/1.1 401")
        found.settimeout(0.02)
        with pytest.raises(ConnectionError):
            _until_refused(lambda: found.sendall(b"x"), found)


@pytest.mark.parametrize("call", ["POST /jobs", "PUT /code"])
def test_a_body_that_does_not_come(call: str, control: FakeControlService, monkeypatch: Any) -> None:
    """Of one who has the token; the upload's beginning is removed again."""
    monkeypatch.setattr(gate, "BODY_LIMIT_S", 0.2)
    monkeypatch.setattr(gate, "PAUSE_LIMIT_S", 0.2)
    path = {"POST /jobs": "/jobs", "PUT /code": f"/code/{hashlib.sha256(b'x').hexdigest()}"}[call]
    with served(control) as server, connected(server) as found:
        found.sendall(
            head(call.partition(" ")[0], path, f"Content-Type: {JSON}", "Content-Length: 100") + b"{"
        )
        assert closed(found).startswith(b"HTTP/1.1 408")
    assert list(control.upload_folder.iterdir()) == []


def test_a_body_that_trickles(control: FakeControlService, monkeypatch: Any) -> None:
    monkeypatch.setattr(gate, "BODY_LIMIT_S", 0.2)
    with served(control) as server, connected(server) as found:
        found.sendall(head("POST", "/jobs", f"Content-Type: {JSON}", "Content-Length: 100000"))
        found.settimeout(0.02)
        answer = b""
        for _ in range(10_000):
            found.sendall(b" ")
            try:
                answer = found.recv(65536)
                break
            except TimeoutError:
                continue
        assert answer.startswith(b"HTTP/1.1 408")


def test_an_answer_that_nobody_takes(control: FakeControlService, api: Api, monkeypatch: Any) -> None:
    monkeypatch.setattr(connection, "WRITE_LIMIT_S", 0.1)
    job = submit(api)
    control.outputs_of[job] = {"big": b"x" * (64 << 20)}
    with served(control) as server, connected(server) as found:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        found.sendall(head("GET", f"/jobs/{job}/outputs"))
        wait_for("the server gives it up", lambda: control.closed_downloads)


@contextmanager
def served(control: FakeControlService) -> Iterator[ApiServer]:
    """After the limits were patched."""
    server = ApiServer(control, TOKEN)
    server.start()
    try:
        yield server
    finally:
        server.stop()
