"""Faults between orch and an S3 server: microburst for what it can do, a small proxy of our own for the rest."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import parse_qs, urlsplit

from support.server import wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from support.seaweed import SeaweedFS

LIMIT_S = 30.0
WARM_UP_S = 60.0
"""Its first request takes microburst seconds: it loads the models of all services."""


def _error(code: str, status: int) -> dict[str, Any]:
    return {"error": {"code": code, "status": status}}


_PUT, _GET, _LIST = {"operation": "PutObject"}, {"operation": "GetObject"}, {"operation": "ListObjectsV2"}
BURSTS: dict[str, dict[str, Any]] = {
    "500": _error("InternalError", 500),
    "503 SlowDown": _error("SlowDown", 503),
    "connection reset": {"reset": True},
    "time-out": {"timeout_ms": 50},
    "truncated bodies": {**_GET, "response": {"truncate_frac": 0.5}},
    "truncated lists": {**_LIST, "response": {"truncate_frac": 0.5}},
    "corrupted bodies": {**_GET, "response": {"corrupt_bytes": 8}},
    "corrupted lists": {**_LIST, "response": {"corrupt_bytes": 8}},
    "answers cut off": {"response": {"abort_frac": 0.3}},
    "uploads cut off": {**_PUT, "request": {"cut_upload": {"after_bytes": 64}}},
    "slow bytes": {"response": {"bandwidth_kbps": 100}},
    "slow uploads": {**_PUT, "request": {"slow_upload": {"rate_kbps": 200}}},
    "412 for nothing": {**_PUT, **_error("PreconditionFailed", 412)},
    "409": {**_PUT, **_error("ConditionalRequestConflict", 409)},
    "landed, then cut off": {**_PUT, "response": {"abort_bytes": 0}},
}
"""Rules of microburst, without their probability."""


class Microburst:
    """A fault-injecting proxy in front of a SeaweedFS. `rules`: its own, see its documentation; [] is no fault."""

    def __init__(self, seaweed: SeaweedFS, folder: Path) -> None:
        self._seaweed, self._log_path = seaweed, folder / "microburst.log"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self.endpoint = f"http://127.0.0.1:{self._port}"

    def __enter__(self) -> Self:
        parts = [
            *(sys.executable, "-m", "microburst", "--resign", "--host", "127.0.0.1"),
            *("--upstream", self._seaweed.endpoint, "--port", str(self._port)),
        ]
        setpriv = shutil.which("setpriv")
        with self._log_path.open("wb") as log:
            self._process = subprocess.Popen(
                [setpriv, "--pdeathsig", "KILL", *parts] if setpriv else parts,
                env={
                    **os.environ,
                    **self._seaweed.env,
                    "AWS_DEFAULT_REGION": self._seaweed.env["AWS_REGION"],
                },
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        wait_for("microburst answers", self._is_up, LIMIT_S)
        with contextlib.suppress(urllib.error.HTTPError):
            urllib.request.urlopen(f"{self.endpoint}/", timeout=WARM_UP_S).close()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait(LIMIT_S)

    @contextlib.contextmanager
    def failing(self, name: str, share: float) -> Iterator[None]:
        """One of BURSTS for so many of the calls that it fits."""
        self._rules({"service": "s3", "probability": share, **BURSTS[name]})
        try:
            yield
        finally:
            self._rules()

    def _rules(self, *rules: Mapping[str, Any]) -> None:
        self._ask("POST", "rules", list(rules))
        self._ask("DELETE", "fired")

    def fired(self) -> int:
        """Faults since `failing` was entered."""
        return len(self._ask("GET", "fired?limit=100000"))

    def _is_up(self) -> bool:
        assert self._process.poll() is None, self._log_path.read_text()
        with contextlib.suppress(OSError):
            return bool(self._ask("GET", "health")["status"] == "ok")
        return False

    def _ask(self, method: str, what: str, body: Any = None) -> Any:
        request = urllib.request.Request(
            f"{self.endpoint}/_microburst/{what}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=LIMIT_S) as answer:
            return json.load(answer)


class FaultyProxy:
    """What microburst lacks. Hands requests on as they are (the signature covers the Host header, which stays).

    `stale lists`: a list as it was some time ago. `landed, 500` and `landed, then refused`: the write has landed, and
    the answer says that it has failed, or that somebody else was first.
    """

    KINDS = ("stale lists", "landed, 500", "landed, then refused")

    def __init__(self, seaweed: SeaweedFS, rng: random.Random) -> None:
        self._upstream = urlsplit(seaweed.endpoint).netloc
        self._rng, self._lock = rng, threading.Lock()
        self._kind, self._share, self.fired = "", 0.0, 0
        self._lists: dict[str, tuple[int, list[tuple[str, str]], bytes]] = {}
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one_request(self) -> None:
                with contextlib.suppress(ConnectionError):
                    super().handle_one_request()

            def _any(self) -> None:
                proxy.answer(self)

            do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = _any  # noqa: N815 - the base class's names

            def log_message(self, *_: Any) -> None:
                """Nobody reads it."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(LIMIT_S)

    def fault(self, kind: str, share: float) -> None:
        """So many of the calls that it fits; "" ends it."""
        with self._lock:
            self._kind, self._share, self.fired = kind, share, 0

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        connection = http.client.HTTPConnection(self._upstream, timeout=LIMIT_S)
        try:
            connection.request(handler.command, handler.path, body, dict(handler.headers.items()))
            found = connection.getresponse()
            answer = (found.status, found.getheaders(), found.read())
        finally:
            connection.close()
        status, headers, content = self._changed(handler, answer)
        handler.send_response_only(status)
        for name, value in headers:
            if name.lower() not in {"transfer-encoding", "connection", "content-length"}:
                handler.send_header(name, value)
        length = {name.lower(): value for name, value in headers}.get("content-length", "0")
        handler.send_header("Content-Length", length if handler.command == "HEAD" else str(len(content)))
        handler.end_headers()
        if handler.command != "HEAD":
            handler.wfile.write(content)

    def _changed(
        self, handler: BaseHTTPRequestHandler, answer: tuple[int, list[tuple[str, str]], bytes]
    ) -> tuple[int, list[tuple[str, str]], bytes]:
        is_list = "list-type" in parse_qs(urlsplit(handler.path).query)
        with self._lock:
            old = self._lists.get(handler.path)
            if is_list and answer[0] == 200 and (old is None or self._rng.random() < 0.2):
                self._lists[handler.path] = answer
            if not self._kind or self._rng.random() >= self._share:
                return answer
            if self._kind == "stale lists":
                if not is_list or old is None:
                    return answer
                self.fired += 1
                return old
            if handler.command != "PUT" or answer[0] != 200:
                return answer
            self.fired += 1
            if self._kind == "landed, 500":
                return _answer(500, "InternalError")
            return _answer(412, "PreconditionFailed")


def _answer(status: int, code: str) -> tuple[int, list[tuple[str, str]], bytes]:
    body = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>a test says so</Message></Error>'
    return status, [("Content-Type", "application/xml")], body.encode()
