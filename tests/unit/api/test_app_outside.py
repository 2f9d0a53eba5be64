"""The API where other machines reach it: TLS, and names."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from orch.api.client import Client
from orch.api.gate import ANY_ADDRESS
from orch.api.serve import ApiServer, _names_of
from orch.model.errors import NoServer, WrongUse
from orch.model.listening import Listen, server_context
from support.certificates import Certificate, make_certificate
from support.fake_control import FakeControlService
from support.live_api import TOKEN, Api


@pytest.fixture
def files(tmp_path: Path) -> Certificate:
    return make_certificate(tmp_path)


@pytest.fixture
def outside(control: FakeControlService, files: Certificate) -> Iterator[ApiServer]:
    listen = Listen("127.0.0.2", 0, str(files.certificate), str(files.key), ("orch.example.org",))
    server = ApiServer(
        control, TOKEN, host=listen.host, port=0, hosts=listen.names, tls=server_context(listen)
    )
    server.start()
    yield server
    server.stop()


def test_a_client_that_trusts_it(
    outside: ApiServer, files: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert outside.url.startswith("https://127.0.0.2:")
    monkeypatch.setenv("ORCH_CA_FILE", str(files.certificate))
    client = Client(outside.url, TOKEN)
    assert client.jobs() == []
    client.close()


def test_a_client_that_does_not(outside: ApiServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    client = Client(outside.url, TOKEN)
    with pytest.raises(NoServer, match="ORCH_CA_FILE"):
        client.jobs()
    client.close()
    monkeypatch.setenv("ORCH_CA_FILE", str(tmp_path / "none"))
    with pytest.raises(WrongUse, match="no such file"):
        Client(outside.url, TOKEN)


def test_without_tls_there_is_no_answer(outside: ApiServer) -> None:
    host, port = outside.url.removeprefix("https://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as plain:
        plain.sendall(
            f"GET /api/v1/jobs HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {TOKEN}\r\n\r\n".encode()
        )
        assert b"HTTP/" not in plain.recv(1000)


def test_old_versions_of_tls_are_refused(outside: ApiServer, files: Certificate) -> None:
    host, port = outside.url.removeprefix("https://").split(":")
    context = ssl.create_default_context(cafile=files.certificate)
    context.maximum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    context.set_ciphers("ALL:@SECLEVEL=0")
    with (
        socket.create_connection((host, int(port)), timeout=30) as plain,
        pytest.raises((ssl.SSLError, OSError)),
    ):
        context.wrap_socket(plain, server_hostname=host)


def test_names(api: Api, outside: ApiServer, files: Certificate, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of its config, its address, its machine's name, loopback; the Origin must be the same."""
    port = outside.url.rpartition(":")[2]
    api.url = f"{outside.url}/api/v1"
    api.pool.connection_pool_kw["ca_certs"] = str(files.certificate)
    for host in (
        "orch.example.org",
        "ORCH.example.org:8443",
        f"127.0.0.2:{port}",
        "localhost",
    ):
        assert api("GET", "/server", Host=host, Origin=f"https://{host}").status == 200, host
    for host in ("evil.example", "example.org", "127.0.0.3", "[::2]", "x.orch.example.org", "*"):
        assert api.error("GET", "/server", Host=host)[:2] == (403, "forbidden"), host
    assert api.error("GET", "/server", Authorization="")[0] == 401


def test_a_server_at_all_addresses_takes_numbers_for_its_name(control: FakeControlService) -> None:
    """It cannot know under which of them it is asked; and no page can have a browser take its name for a number."""
    server = ApiServer(control, TOKEN, hosts=[ANY_ADDRESS])
    server.start()
    api = Api(f"{server.url}/api/v1")
    for host in ("10.1.2.3", "10.1.2.3:8443", "[2001:db8::1]:8443", "localhost"):
        assert api("GET", "/server", Host=host).status == 200, host
    for host in ("evil.example", "*", "10.1.2.3.evil.example", "0x7f.1", "", "[", "10.1.2.3:x"):
        assert api.error("GET", "/server", Host=host)[:2] == (403, "forbidden"), host
    api.pool.clear()
    server.stop()


def test_names_of_an_address() -> None:
    assert _names_of("127.0.0.1") == ("127.0.0.1",)
    assert _names_of("10.1.2.3") == ("10.1.2.3", socket.gethostname(), socket.getfqdn())
    assert _names_of("2001:db8::1")[0] == "[2001:db8::1]"
    assert _names_of("0.0.0.0")[0] == _names_of("::")[0] == ANY_ADDRESS


def test_two_servers_of_one_controller_end_together(
    control: FakeControlService, outside: ApiServer, server: ApiServer
) -> None:
    before = threading.active_count()
    outside.stop()
    server.stop()
    assert threading.active_count() <= before - 2
