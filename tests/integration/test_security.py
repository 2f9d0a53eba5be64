"""Who may speak to what this machine's server has started: nobody from outside, and nobody without a token."""

from __future__ import annotations

import http.client
import ipaddress
import json
import socket
from pathlib import Path

import psutil
import pytest

from orch.control.home import Home
from orch.control.raylocal import ray_processes
from support.jobs import Gate, wait_output, write_job
from support.server import Server

pytestmark = pytest.mark.integration


def test_everything_listens_on_loopback(server: Server, tmp_path: Path) -> None:
    """Ray's own processes, the controller, an agent, its guard and its command: read from the sockets themselves."""
    gate = Gate(tmp_path)
    job = server.submit(write_job(tmp_path / "work", f"echo up; {gate.wait}"))
    wait_output(server, job, "up")
    processes = {process.pid: process for process in ray_processes(server.home)}
    guard = psutil.Process(server.pid(job, "ProcessStarted")).parent()
    assert guard is not None
    for process in [*processes.values(), guard]:
        processes.update({child.pid: child for child in process.children(recursive=True)})
    processes[guard.pid] = guard
    listening = []
    for process in processes.values():
        try:
            found = process.net_connections(kind="inet")
        except psutil.NoSuchProcess:
            continue
        listening += [
            (process.name(), one) for one in found if one.status == psutil.CONN_LISTEN or not one.raddr
        ]
    gate.open()
    server.wait(job)
    assert {"raylet", "gcs_server"} <= {name for name, _ in listening}
    open_to_others = [(name, one.laddr) for name, one in listening if not _is_loopback(one.laddr.ip)]
    assert not open_to_others


def _is_loopback(address: str) -> bool:
    found = ipaddress.ip_address(address)
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return (mapped or found).is_loopback


class Api:
    """The server's API as somebody else might call it."""

    def __init__(self, server: Server) -> None:
        home = Home(server.home)
        record = home.read_server()
        assert record is not None
        self.address = record.url.removeprefix("http://")
        self.token = home.read_token()

    def ask(self, method: str = "GET", path: str = "/api/v1/jobs", **headers: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection(self.address, timeout=30)
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, headers=names)
        answer = connection.getresponse()
        body = answer.read().decode()
        connection.close()
        return answer.status, body


@pytest.fixture
def api(server: Server) -> Api:
    return Api(server)


@pytest.mark.parametrize(
    "token",
    [None, "", "Bearer ", "Bearer wrong", "Basic {token}", "{token}", "Bearer {token}x", "bearer{token}"],
)
@pytest.mark.parametrize("call", [("GET", "/api/v1/jobs"), ("POST", "/api/v1/server/stop"), ("GET", "/")])
def test_without_the_token(token: str | None, call: tuple[str, str], api: Api) -> None:
    headers = {} if token is None else {"Authorization": token.format(token=api.token)}
    status, body = api.ask(*call, **headers)
    assert status == 401
    assert json.loads(body)["error"]["code"] == "unauthorized"
    assert api.token not in body


@pytest.mark.parametrize(
    "host", ["example.org", "127.0.0.1.example.org", "", "169.254.169.254", "localhost.evil:80"]
)
def test_foreign_host(host: str, api: Api) -> None:
    """A name that a web page has pointed to loopback."""
    status, body = api.ask(Host=host, Authorization=f"Bearer {api.token}")
    assert status == 403, body


@pytest.mark.parametrize("origin", ["https://example.org", "null", "http://127.0.0.1:1", "http://localhost"])
def test_foreign_origin(origin: str, api: Api) -> None:
    status, body = api.ask(Origin=origin, Authorization=f"Bearer {api.token}")
    assert status == 403, body


def test_with_the_token(api: Api) -> None:
    port = api.address.rpartition(":")[2]
    for host in (api.address, f"localhost:{port}", f"[::1]:{port}"):
        status, body = api.ask(Host=host, Origin=f"http://{host}", Authorization=f"Bearer {api.token}")
        assert status == 200, body


def test_wrong_token_of_the_command_line(server: Server) -> None:
    """Of another home, say: no server for you, and it is told why."""
    url = Home(server.home).read_server()
    assert url is not None
    stranger = Server(server.home / "nowhere", {"ORCH_URL": url.url, "ORCH_TOKEN": "wrong"})
    said = stranger.cli("status", check=5).stderr
    assert "token" in said
    assert "Traceback" not in said
    without = Server(server.home / "nowhere", {"ORCH_URL": url.url})
    assert "ORCH_TOKEN" in without.cli("status", check=2).stderr
    known = Server(
        server.home / "nowhere", {"ORCH_URL": url.url, "ORCH_TOKEN": Home(server.home).read_token()}
    )
    assert known.cli("server", "status").stdout
    assert not known.home.exists()


def test_what_is_no_request(api: Api) -> None:
    host, _, port = api.address.rpartition(":")
    for rubbish in (
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"GET\r\n\r\n",
        b"POST /api/v1/jobs HTTP/1.1\r\nContent-Length: x\r\n\r\n",
    ):
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            connection.sendall(rubbish)
            connection.shutdown(socket.SHUT_WR)
            answer = connection.recv(65536)
        assert not answer or answer.startswith(b"HTTP/1.1 4"), answer
    assert api.ask(Authorization=f"Bearer {api.token}")[0] == 200


def test_paths_stay_in_the_api(api: Api) -> None:
    headers = {"Authorization": f"Bearer {api.token}"}
    for path in (
        "/api/v1/jobs/..%2f..%2ftoken",
        "/api/v1/jobs/../../token",
        "/token",
        "/api/v1/jobs/%00/logs",
    ):
        status, body = api.ask(path=path, **headers)
        assert status == 404, path
        assert api.token not in body
