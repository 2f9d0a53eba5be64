"""Metadata services on loopback that answer as the providers document it, down to headers and refusals."""

from __future__ import annotations

import json
import threading
import time
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

Reply = tuple[int, dict[str, str], bytes]
NOT_FOUND: Reply = (404, {"Content-Type": "text/html"}, b"<html><h1>404 - Not Found</h1></html>")


class MetadataServer:
    """`answer(method, path, headers)` is asked for every request; what it returns is sent as it is."""

    def __init__(self, answer: Callable[[str, str, dict[str, str]], Reply | None]) -> None:
        """None as an answer: nothing is sent until `close`."""
        self.asked: list[tuple[str, str]] = []
        self._closing = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def _reply(self) -> None:
                outer.asked.append((self.command, self.path))
                headers = {name.lower(): value for name, value in self.headers.items()}
                found = answer(self.command, self.path, headers)
                if found is None:
                    outer._closing.wait()
                    return
                status, more, body = found
                self.send_response_only(status)
                for name, value in more.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_PUT = do_POST = _reply  # noqa: N815 - the names http.server looks for

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class Ec2:
    """IMDSv2 of a spot instance. Change the attributes as the test goes."""

    def __init__(self) -> None:
        self.tokens: list[str] = []
        self.life_cycle = "spot"
        self.action: Any = None
        self.rebalance: Any = None
        self.enabled = True
        self.clock_ahead_s = 0.0

    def expire(self) -> None:
        self.tokens = [f"expired-{token}" for token in self.tokens]

    def __call__(self, method: str, path: str, headers: dict[str, str]) -> Reply:
        if path == "/latest/api/token":
            return self._token(method, headers)
        if headers.get("x-aws-ec2-metadata-token") not in self.tokens:
            return 401, {"Content-Type": "text/html"}, b"<html><h1>401 - Unauthorized</h1></html>"
        date = {"Date": formatdate(time.time() + self.clock_ahead_s, usegmt=True)}
        if path == "/latest/meta-data/instance-life-cycle":
            return 200, date | {"Content-Type": "text/plain"}, self.life_cycle.encode()
        found = {
            "/latest/meta-data/spot/instance-action": self.action,
            "/latest/meta-data/events/recommendations/rebalance": self.rebalance,
        }.get(path)
        if found is None:
            return NOT_FOUND
        body = found if isinstance(found, bytes) else json.dumps(found).encode()
        return 200, date | {"Content-Type": "application/json"}, body

    def _token(self, method: str, headers: dict[str, str]) -> Reply:
        if not self.enabled:
            return 403, {}, b""
        if method != "PUT":
            return 405, {"Allow": "OPTIONS, PUT"}, b""
        ttl = headers.get("x-aws-ec2-metadata-token-ttl-seconds", "")
        if not ttl.isdigit() or not 1 <= int(ttl) <= 21_600:
            return 400, {}, b""
        token = f"AQAEA{len(self.tokens)}=="
        self.tokens.append(token)
        return (
            200,
            {"X-Aws-Ec2-Metadata-Token-Ttl-Seconds": ttl, "Content-Type": "text/plain"},
            token.encode(),
        )


class Gce:
    def __init__(self) -> None:
        self.preempted, self.maintenance = "FALSE", "NONE"

    def __call__(self, method: str, path: str, headers: dict[str, str]) -> Reply:
        ours = {
            "Metadata-Flavor": "Google",
            "Server": "Metadata Server for VM",
            "Content-Type": "application/text",
        }
        if headers.get("metadata-flavor") != "Google":
            return 403, ours, b"Missing Metadata-Flavor:Google header."
        values = {"preempted": self.preempted, "maintenance-event": self.maintenance}
        value = values.get(path.removeprefix("/computeMetadata/v1/instance/"))
        if method != "GET" or value is None:
            return 404, ours, b"<!DOCTYPE html>"
        return 200, ours, value.encode()


class Imds:
    """Azure's."""

    def __init__(self) -> None:
        self.name = "trainer_0"
        self.incarnation, self.events = 1, [dict[str, Any]()]
        self.events.clear()

    def event(self, kind: str, not_before_s: float | None, **more: Any) -> None:
        self.incarnation += 1
        self.events.append(
            {
                "EventId": f"602d9444-d2cd-49c7-8624-8643e7171{self.incarnation:03d}",
                "EventStatus": "Scheduled" if not_before_s is not None else "Started",
                "EventType": kind,
                "ResourceType": "VirtualMachine",
                "Resources": [self.name],
                "NotBefore": "" if not_before_s is None else formatdate(not_before_s, usegmt=True),
                "Description": "Host server is undergoing maintenance.",
                "EventSource": "Platform",
                "DurationInSeconds": -1,
                **more,
            }
        )

    def __call__(self, method: str, path: str, headers: dict[str, str]) -> Reply:
        if headers.get("metadata") != "true" or "api-version=" not in path:
            return 400, {"Content-Type": "application/json"}, b'{"error": "Bad request"}'
        if path.startswith("/metadata/instance/compute/name?"):
            return 200, {"Content-Type": "text/plain; charset=utf-8"}, self.name.encode()
        if not path.startswith("/metadata/scheduledevents?") or method != "GET":
            return NOT_FOUND
        document = {"DocumentIncarnation": self.incarnation, "Events": self.events}
        return 200, {"Content-Type": "application/json; charset=utf-8"}, json.dumps(document).encode()
