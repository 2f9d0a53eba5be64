"""What stands before every route: who asks, from where, and how much they send.

Plain ASGI, so that streams stay streams.
"""

import asyncio
import hmac
import ipaddress
import json
import logging
from collections.abc import Iterable
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from orch.api.limits import BODY_BYTES_MAX, BODY_LIMIT_S, CODE_BYTES_MAX, PAUSE_LIMIT_S

_log = logging.getLogger("orch.api")

API_VERSION = "1"
ANY_ADDRESS = "*"
"""As a host: every Host that is an IP address, for a server that listens at all of the machine's. No name leads to
another address behind a browser's back then; a number cannot.
"""
LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "[::1]")
_CODE_PATH = "/api/v1/code/"


class Gate:
    """Lets a request through if its Host is ours, its Origin ours or none, and its token right."""

    def __init__(self, app: ASGIApp, token: str, hosts: Iterable[str] = ()) -> None:
        if not token:
            raise ValueError("an API without a token would be open to everybody")
        self._app = app
        self._credentials = f"Bearer {token}".encode("ascii")
        named = {host.lower() for host in (*LOOPBACK_HOSTS, *hosts)}
        self._any_address = ANY_ADDRESS in named
        self._hosts = named - {ANY_ADDRESS}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return  # uvicorn closes a WebSocket that nobody accepts
        answer = _Answer(send)
        headers: dict[bytes, bytes] = dict(scope["headers"])
        refusal = self._refusal(headers, scope)
        if refusal is not None:
            await answer.refuse(*refusal)
            return
        try:
            await self._app(scope, _limited(receive, scope), answer)
        except ClientDisconnect:
            return
        except Exception:
            # The answer tells nothing of our insides; the server's log does.
            _log.exception("%s %s failed", scope["method"], scope["path"])
            await answer.refuse(500, "internal", "the server met an error of its own; its log says which")

    def _refusal(self, headers: dict[bytes, bytes], scope: Scope) -> tuple[int, str, str] | None:
        # A web page can make a browser send requests to loopback under a name of its own choosing; the Host
        # tells. A page of another site shows in the Origin.
        host = headers.get(b"host", b"").decode("latin-1").lower()
        if not self._is_ours(_without_port(host)):
            return (
                403,
                "forbidden",
                (
                    f"this server is not called {host[:100]!r}; reach it as 127.0.0.1 or localhost, or add the name"
                    " to `listen.names` in its config file"
                ),
            )
        origin = headers.get(b"origin")
        if origin is not None and origin.decode("latin-1").lower() not in {
            f"http://{host}",
            f"https://{host}",
        }:
            return 403, "forbidden", "requests from pages of other sites are refused"
        if not hmac.compare_digest(headers.get(b"authorization", b""), self._credentials):
            return (
                401,
                "unauthorized",
                "the bearer token is missing or wrong; it is in the file `token` of orch's home",
            )
        length = headers.get(b"content-length", b"0")
        if not length.isdigit():
            return 400, "wrong_use", "Content-Length is no number"
        if int(length) > _limit_of(scope):
            return 413, "wrong_use", f"the request is larger than {_limit_of(scope)} bytes"
        return None

    def _is_ours(self, host: str) -> bool:
        return host in self._hosts or (self._any_address and _is_address(host))


class _Answer:
    """Sends on, marked as ours, and knows whether anything was sent."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._started = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._started = True
            extra = [
                (b"x-orch-api", API_VERSION.encode()),
                (b"cache-control", b"no-store"),
                (b"x-content-type-options", b"nosniff"),
            ]
            message = {**message, "headers": [*message.get("headers", ()), *extra]}
        await self._send(message)

    async def refuse(self, status: int, code: str, text: str) -> None:
        if self._started:
            return  # half an answer: the server closes the connection, and the client sees that it broke off
        body = json.dumps(error_document(code, text)).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        if status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        await self({"type": "http.response.start", "status": status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})


def error_document(code: str, message: str, problems: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    """The body of every answer that is an error."""
    error: dict[str, Any] = {"code": code, "message": message}
    if problems:
        error["problems"] = problems
    return {"error": error}


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True


def _without_port(host: str) -> str:
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdigit() else host


def _is_upload(scope: Scope) -> bool:
    return bool(scope["method"] == "PUT" and scope["path"].startswith(_CODE_PATH))


def _limit_of(scope: Scope) -> int:
    return CODE_BYTES_MAX if _is_upload(scope) else BODY_BYTES_MAX


def _limited(receive: Receive, scope: Scope) -> Receive:
    """A body is counted as it comes, and waited for so long."""
    limit_bytes, upload = _limit_of(scope), _is_upload(scope)
    seen, whole = 0, False
    since: float | None = None

    async def counted() -> Message:
        nonlocal seen, whole, since
        if whole:
            return await receive()  # whoever asks now waits for the client to go away
        now = asyncio.get_running_loop().time()
        since = now if since is None else since
        left_s = PAUSE_LIMIT_S if upload else BODY_LIMIT_S - (now - since)
        try:
            message = await asyncio.wait_for(receive(), left_s)
        except TimeoutError:
            raise HTTPException(
                408, "the request came too slowly; send it again", {"Connection": "close"}
            ) from None
        seen += len(message.get("body", b""))
        whole = not message.get("more_body", False)
        if seen > limit_bytes:
            raise HTTPException(413, f"the request is larger than {limit_bytes} bytes")
        return message

    return counted
