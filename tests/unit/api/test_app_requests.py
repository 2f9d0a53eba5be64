"""The API: who may ask, and what comes in."""

import hashlib
import socket
from typing import Any

import pytest

from orch.api.limits import BODY_BYTES_MAX
from orch.api.serve import ApiServer
from orch.model.errors import NoServer
from support.fake_control import FakeControlService
from support.live_api import SECRET, SPEC, TOKEN, Api, submit
from support.server import wait_for

# Who may ask


def test_every_call_needs_the_token(api: Api) -> None:
    for path in ("/server", "/jobs", "/nothing", "/jobs/a-1/logs"):
        for given in (
            "",
            "Bearer wrong",
            "Bearer ",
            f"Basic {TOKEN}",
            TOKEN,
            f"Bearer {TOKEN}x",
            f"bearer {TOKEN}",
        ):
            answer = api("GET", path, Authorization=given)
            assert answer.status == 401, (path, given)
            assert answer.headers["WWW-Authenticate"] == "Bearer"
            assert answer.json()["error"]["code"] == "unauthorized"


def test_a_name_of_somebody_elses_choosing_is_refused(api: Api) -> None:
    for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example", "", "localhost.evil:1"):
        assert api.error("GET", "/server", Host=host)[:2] == (403, "forbidden"), host


def test_names_of_our_own(api: Api) -> None:
    for host in ("localhost", "LOCALHOST:1234", "127.0.0.1:9", "[::1]:80", "my-server:8000"):
        assert api("GET", "/server", Host=host).status == 200, host


def test_pages_of_other_sites_are_refused(api: Api, server: ApiServer) -> None:
    for origin in ("http://evil.example", "null", "http://localhost:1"):
        assert api.error("GET", "/server", Origin=origin)[:2] == (403, "forbidden")
    assert api("GET", "/server", Origin=server.url).status == 200


def test_a_token_is_needed_to_serve(control: FakeControlService) -> None:
    with pytest.raises(ValueError, match="without a token"):
        ApiServer(control, "")


def test_a_port_that_is_taken(control: FakeControlService, server: ApiServer) -> None:
    with pytest.raises(NoServer, match="port"):
        ApiServer(control, TOKEN, port=int(server.url.rpartition(":")[2]))


# What cannot be


def test_what_is_not_there(api: Api) -> None:
    assert api.error("GET", "/nothing")[:2] == (404, "not_found")
    assert api.error("DELETE", "/jobs")[0] == 405
    for path in ("/openapi.json", "/docs", "/redoc"):
        assert api.error("GET", path)[0] == 404
    for path in ("", "/events", "/logs", "/wait", "/outputs"):
        assert api.error("GET", f"/jobs/nobody-1{path}")[:2] == (404, "no_such_job")
        assert api.error("GET", f"/jobs/..%2f..%2fetc{path}")[0] == 404
        assert api.error("GET", f"/jobs/UPPER{path}")[:2] == (404, "no_such_job")


def test_parameters_have_limits(api: Api) -> None:
    job = submit(api)
    for query in (
        "wait_s=nan",
        "wait_s=-1",
        "wait_s=1e9",
        "after=-1",
        "after=x",
        f"after={10**20}",
        "limit=0",
    ):
        status, code, message = api.error("GET", f"/jobs/{job}/events?{query}")
        assert (status, code) == (400, "wrong_use"), query
        assert query.partition("=")[0] in message


def test_bodies_that_are_no_requests(api: Api) -> None:
    for body in (b"", b"{", b"[]", b"null", b"\xff", b"[" * 100_000, b'{"spec": 1}', b'{"spec": {}, "x": 1}'):
        status, code, _ = api.error("POST", "/jobs", body, Content_Type="application/json")
        assert (status, code) == (400, "wrong_use"), body[:20]


def test_bodies_have_a_limit(api: Api, server: ApiServer) -> None:
    # The refusal comes before the body: it is announced and not sent.
    host, port = server.url.removeprefix("http://").split(":")
    head = f"POST /api/v1/jobs HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {TOKEN}\r\n"
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(f"{head}Content-Length: {BODY_BYTES_MAX + 1}\r\n\r\n".encode())
        assert connection.recv(100).startswith(b"HTTP/1.1 413")
    chunk = b"%x\r\n%s\r\n" % (1 << 20, b" " * (1 << 20))
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(
            f"{head}Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
        )
        for _ in range(BODY_BYTES_MAX // (1 << 20) + 1):
            connection.sendall(chunk)
        assert connection.recv(100).startswith(b"HTTP/1.1 413")


def test_a_mistake_of_ours_is_not_shown(
    api: Api, control: FakeControlService, caplog: pytest.LogCaptureFixture
) -> None:
    job = submit(api)

    def broken(*_: Any) -> Any:
        raise RuntimeError("the inside story")

    control.job = broken  # type: ignore[method-assign]
    status, code, message = api.error("GET", f"/jobs/{job}")
    assert (status, code) == (500, "internal")
    assert "inside" not in message
    wait_for("the log tells it, behind the answer", lambda: "the inside story" in caplog.text)
    assert api("GET", "/server").status == 200


# Submit


def test_submit_answers_with_the_job(api: Api) -> None:
    answer = api("POST", "/jobs", {"spec": SPEC, "name": "other"})
    document = answer.json()
    assert document["version"] == 1
    [job] = document["jobs"]
    assert job["id"].startswith("other-")
    assert (job["state"], job["name"], job["attempts"], job["spec"]["run"]) == ("QUEUED", "other", [], "true")


def test_submit_names_every_problem_at_once(api: Api) -> None:
    spec = SPEC | {"priority": "high", "checkpoint": {"evry": 1}, "name": "../x"}
    answer = api("POST", "/jobs", {"spec": spec})
    assert answer.status == 400
    problems = answer.json()["error"]["problems"]
    assert {problem["path"] for problem in problems} == {"priority", "checkpoint.evry", "name"}
    assert next(problem for problem in problems if problem["path"] == "checkpoint.evry")["near"] == "every"


def test_submit_refuses_what_this_version_cannot_do(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    rule = ("restart.on_nan", "rolling back", "leave it at `stop`", lambda job: job.restart.on_nan != "stop")
    monkeypatch.setattr("orch.model.spec.NOT_YET", (rule,))
    asked = SPEC | {"restart": {"on_nan": "rollback"}}
    status, code, message = api.error("POST", "/jobs", {"spec": asked})
    assert (status, code) == (400, "wrong_use")
    assert "rolling back" in message


def test_submit_refuses_what_can_never_be_placed(api: Api, control: FakeControlService) -> None:
    status, code, message = api.error("POST", "/jobs", {"spec": SPEC | {"resources": {"cpus": 64}}})
    assert (status, code) == (422, "never_placeable")
    assert "64" in message
    assert control.store.jobs() == []


def test_submit_wants_the_code_first(api: Api, control: FakeControlService) -> None:
    spec = {"run": "true", "name": "a"}
    assert "not uploaded" in api.error("POST", "/jobs", {"spec": spec})[2]
    data = b"PK"
    code = {
        "digest": hashlib.sha256(data).hexdigest(),
        "size_bytes": 2,
        "git_commit": None,
        "git_dirty": None,
    }
    assert "/code/" in api.error("POST", "/jobs", {"spec": spec, "code": code})[2]
    assert api("PUT", f"/code/{code['digest']}", data).status == 204
    job = submit(api, spec=spec, code=code)
    assert control.job(job)["code"]["digest"] == code["digest"]


def test_submit_wants_to_know_the_folder_of_a_workdir_that_is_not_shipped(api: Api) -> None:
    spec = SPEC | {"workdir": "here"}
    assert "base_dir" in api.error("POST", "/jobs", {"spec": spec})[2]
    submit(api, spec=spec, base_dir="/srv")


def test_a_repeated_submit_is_one_job(api: Api, control: FakeControlService) -> None:
    request = "0123456789abcdef"
    assert submit(api, request=request) == submit(api, request=request)
    assert len(control.store.jobs()) == 1


def test_secrets_are_stored_sealed_and_never_shown(api: Api, control: FakeControlService) -> None:
    spec = SPEC | {"secrets": ["KEY"]}
    job = submit(api, spec=spec, secrets={"KEY": SECRET})
    assert control.secrets.unseal(job, control.store.sealed_secrets(job)) == {"KEY": SECRET}
    assert SECRET not in api("GET", f"/jobs/{job}").data.decode()
    control.store.close()
    for path in control.home.root.glob("orch.db*"):
        assert SECRET.encode() not in path.read_bytes()


def test_an_error_never_shows_a_secret(api: Api) -> None:
    named = SPEC | {"secrets": ["KEY"]}
    for body in (
        {"spec": named, "secrets": {"KEY": SECRET, "MORE": SECRET}},
        {"spec": named, "secrets": {"KEY": [SECRET]}},
        {"spec": named, "secrets": {"KEY": SECRET + "\0"}},
        {"spec": named, "secrets": {"KEY": SECRET}, "more": SECRET},
        {"spec": named | {"env": {"KEY": SECRET}}, "secrets": {"KEY": SECRET}},
    ):
        answer = api("POST", "/jobs", body)
        assert answer.status == 400, answer.data
        assert SECRET not in answer.data.decode()


def test_a_missing_secret(api: Api) -> None:
    assert "KEY" in api.error("POST", "/jobs", {"spec": SPEC | {"secrets": ["KEY"]}})[2]


def test_check(api: Api, control: FakeControlService) -> None:
    answer = api("POST", "/check", {"spec": SPEC | {"resources": {"cpus": 8}}})
    document = answer.json()
    assert (document["placeable"], document["asked"], document["largest"]) == (
        False,
        {"cpus": 8},
        {"cpus": 4},
    )
    assert control.store.jobs() == []


# Code


def test_an_upload_that_was_damaged_leaves_nothing(api: Api, control: FakeControlService) -> None:
    digest = hashlib.sha256(b"right").hexdigest()
    assert api("HEAD", f"/code/{digest}").status == 404
    status, code, message = api.error("PUT", f"/code/{digest}", b"wrong")
    assert (status, code) == (400, "wrong_use")
    assert "digest" in message
    assert list(control.upload_folder.iterdir()) == []
    assert api("PUT", f"/code/{digest}", b"right").status == 204
    assert api("HEAD", f"/code/{digest}").status == 200
    assert [path.name for path in control.upload_folder.iterdir()] == [f"{digest}.zip"]


def test_a_digest_that_is_none(api: Api) -> None:
    for digest in ("x", "A" * 64, "a" * 65, "..%2f" + "a" * 59):
        assert api.error("PUT", f"/code/{digest}", b"x")[0] in {400, 404}, digest


def test_an_upload_that_breaks_off_leaves_nothing(server: ApiServer, control: FakeControlService) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    digest = hashlib.sha256(b"x").hexdigest()
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(
            f"PUT /api/v1/code/{digest} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {TOKEN}\r\n"
            "Content-Length: 1000000\r\n\r\nabc".encode()
        )
    server.stop()  # it has given the upload up by then
    assert list(control.upload_folder.iterdir()) == []
