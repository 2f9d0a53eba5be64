"""A storage is never at a machine's own addresses: not by a name, not by a variable, not after a redirect."""

from __future__ import annotations

import contextlib
import http.server
import socket
import threading

import pytest

from orch_workers.checkpoint import reaching
from orch_workers.checkpoint.errors import StorageRefused, StorageUnavailable
from orch_workers.checkpoint.storage import open_storage

pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"),
    pytest.mark.filterwarnings(
        "ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning"
    ),
]
"""botocore leaves the connection of an answer that it refuses to the garbage collector."""
KEYS = {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "hush", "AWS_REGION": "us-east-1"}
METADATA = "169.254.169.254"
ONE_TRY = {"config_kwargs": {"retries": {"mode": "standard", "total_max_attempts": 1}}}


@contextlib.contextmanager
def answering(status, headers):
    """A server that answers every request like this; its list of requests."""
    seen = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def __getattr__(self, name):
            if name.startswith("do_"):
                return self.answer
            raise AttributeError(name)

        def answer(self):
            seen.append(f"{self.command} {self.path}")
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"no")

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", seen
        finally:
            server.shutdown()
            thread.join()


@contextlib.contextmanager
def opened(url):
    storage = open_storage("s3://bucket/x", ONE_TRY | {"endpoint_url": url}, KEYS)
    try:
        yield storage
    finally:
        storage._client.close()


@pytest.fixture
def names(monkeypatch):
    """Name → addresses, before the real resolver."""
    known = {}
    real = socket.getaddrinfo

    def getaddrinfo(host, port, *arguments, **options):
        if host in known:
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (known[host], port or 0))]
        return real(host, port, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return known


@pytest.mark.parametrize(
    ("options", "env"),
    [
        ({"endpoint_url": f"http://{METADATA}"}, {}),
        ({"client_kwargs": {"endpoint_url": f"http://{METADATA}"}}, {}),
        ({}, {"AWS_ENDPOINT_URL": f"http://{METADATA}"}),
        ({}, {"AWS_ENDPOINT_URL_S3": f"http://{METADATA}"}),
        ({"endpoint_url": "http://harmless.example"}, {}),
        ({}, {"AWS_ENDPOINT_URL_S3": "http://harmless.example:80/x"}),
        ({"endpoint_url": "http://harmless.example", "use_ssl": False}, {}),  # s3fs serves this one
        ({"config_kwargs": {"proxies": {"http": "http://harmless.example:3128"}}}, {}),
    ],
)
def test_no_endpoint_by_option_variable_or_name(options, env, names):
    names["harmless.example"] = METADATA
    with pytest.raises(StorageRefused, match="no storage"):
        open_storage("s3://bucket/x", options, KEYS | env)


def test_other_protocols_are_looked_at_too(names):
    names["harmless.example"] = METADATA
    for url in ("sftp://harmless.example/x", f"sftp://{METADATA}/x"):
        with pytest.raises(StorageRefused, match="no storage"):
            open_storage(url, {}, unfenced=True)


def test_a_name_that_nobody_knows_is_the_clients_to_judge():
    open_storage("s3://bucket/x", {"endpoint_url": "http://nowhere.invalid"}, KEYS)


def test_nothing_is_sent_where_a_name_has_come_to_lead_elsewhere(monkeypatch):
    """As when it resolves to one address for whoever checks and to another for whoever connects."""
    with answering(200, {}) as (url, seen), opened(url) as storage:
        monkeypatch.setattr(reaching, "forbidden_address", lambda address: address == "127.0.0.1")
        for act in (lambda: storage.read("a"), lambda: storage.create("a", b"1"), storage.list):
            with pytest.raises(StorageRefused, match="leads to 127"):
                act()
    assert seen == []


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_redirects_lead_nowhere(status, monkeypatch):
    with (
        answering(200, {}) as (there, reached),
        answering(status, {"Location": f"{there}/x"}) as (url, seen),
        opened(url) as storage,
        pytest.raises((StorageUnavailable, StorageRefused)),
    ):
        storage.read("a")
    assert seen
    assert reached == []


def test_a_client_that_cannot_be_guarded_is_not_used():
    with pytest.raises(StorageRefused, match="cannot be guarded"):
        reaching.guard(object())
