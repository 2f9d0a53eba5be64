"""Requests to an orch server, and its errors as exceptions. Part of client.py, apart for its length."""

from __future__ import annotations

import json
import os
import time
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import urllib3

from orch import __version__
from orch.model import errors
from orch.model.problems import JobFileError, Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

Document = dict[str, Any]

CONNECT_LIMIT_S = 3.0
ANSWER_LIMIT_S = 30.0
"""How long the server may take beyond what it was asked to wait."""
RESTART_PATIENCE_S = 20.0
"""A controller that died is back within seconds; every command waits for it so long."""
CA_VARIABLE = "ORCH_CA_FILE"
"""A file of certificates (PEM) to trust, in place of the system's, where a server is at https://."""
RETRY_PAUSE_S = 0.25
RETRY_PAUSE_S_MAX = 2.0

_BY_CODE = {
    kind.code: kind
    for kind in (
        errors.WrongUse,
        errors.NeverPlaceable,
        errors.NoSuchJob,
        errors.NoServer,
        errors.TimedOut,
        errors.Blocked,
        errors.JobFailed,
        errors.JobCancelled,
    )
}


class Transport:
    """Thread-safe. `locate` says where the server is now, for one that may come back elsewhere; `coming_back` whether
    one that does not answer is being restarted: then it is waited for, by the least patient too.
    """

    def __init__(
        self,
        url: str,
        token: str,
        locate: Callable[[], tuple[str, str]] | None = None,
        coming_back: Callable[[], bool] | None = None,
    ) -> None:
        self._set(url, token)
        self._locate = locate
        self._coming_back = coming_back
        self._pool = urllib3.PoolManager(maxsize=4, retries=False, ca_certs=_authorities())
        self.on_gap: Callable[[str], None] | None = None
        self.carry: Callable[[Callable[[], urllib3.BaseHTTPResponse]], urllib3.BaseHTTPResponse] = _directly
        """How a request is made: a program that can be interrupted does it beside its main thread."""

    @property
    def url(self) -> str:
        return self._url

    def close(self) -> None:
        self._pool.clear()

    def _set(self, url: str, token: str) -> None:
        scheme, _, rest = url.partition("://")
        if scheme not in {"http", "https"} or not rest:
            raise errors.WrongUse(f"{url!r} is no server's address; one looks like http://127.0.0.1:8265")
        self._url = url.rstrip("/")
        self._token = token

    def json(self, method: str, path: str, **options: Any) -> Document:
        answer = self.send(method, path, **options)
        try:
            document = json.loads(answer.data)
        except ValueError:
            document = None
        if not isinstance(document, dict):
            raise errors.NoServer(f"{self._url} answers, but not as an orch server does; check its address")
        return document

    def send(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        fields: Sequence[tuple[str, Any]] = (),
        headers: Mapping[str, str] | None = None,
        accept: tuple[int, ...] = (200, 201, 204),
        wait_s: float = 0,
        limit_s: float = ANSWER_LIMIT_S,
        patience_s: float = 0,
        stream: bool = False,
    ) -> urllib3.BaseHTTPResponse:
        """One request, repeated while the server cannot be reached and patience lasts."""
        data = json.dumps(body).encode() if isinstance(body, dict) else body
        head = {"User-Agent": f"orch/{__version__}", **(headers or {})}
        if isinstance(body, dict):
            head["Content-Type"] = "application/json"
        query = f"?{urlencode(fields)}" if fields else ""
        began = time.monotonic()
        pause_s, told = RETRY_PAUSE_S, False
        while True:
            try:
                request = partial(
                    self._pool.request,
                    method,
                    f"{self._url}/api/v1{path}{query}",
                    body=data,
                    headers={**head, "Authorization": f"Bearer {self._token}"},
                    timeout=urllib3.Timeout(connect=CONNECT_LIMIT_S, read=wait_s + limit_s),
                    redirect=False,  # a redirect would carry the token elsewhere
                    preload_content=not stream,
                    decode_content=False,
                )
                answer = self.carry(request)
                if answer.status != 503:
                    return self._accepted(answer, accept)
                problem = errors.NoServer(
                    _busy(answer) or f"the server at {self._url} is starting or stopping"
                )
            except urllib3.exceptions.HTTPError as error:
                problem = errors.NoServer(f"no server answers at {self._url} ({_why(error)})")
            if time.monotonic() >= began + self._patience_s(patience_s):
                raise problem
            if not told and self.on_gap is not None:
                self.on_gap(problem.message)
            told = True
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, RETRY_PAUSE_S_MAX)
            self._relocate()

    def _patience_s(self, asked_s: float) -> float:
        coming_back = self._coming_back is not None and self._coming_back()
        return max(asked_s, RESTART_PATIENCE_S) if coming_back else asked_s

    def _relocate(self) -> None:
        if self._locate is not None:
            try:
                self._set(*self._locate())
            except errors.NoServer:
                return  # its record is gone for the moment; the patience of the caller decides

    def _accepted(
        self, answer: urllib3.BaseHTTPResponse, accept: tuple[int, ...]
    ) -> urllib3.BaseHTTPResponse:
        if "X-Orch-Api" not in answer.headers:
            raise errors.NoServer(f"what answers at {self._url} is no orch server; check its address")
        if answer.status in accept:
            return answer
        try:
            told = json.loads(answer.data)["error"]
            code, message = str(told["code"]), str(told["message"])
        except (ValueError, KeyError, TypeError):
            raise errors.OrchError(
                f"the server answered {answer.status} without saying why; see its log"
            ) from None
        if code == errors.WrongUse.code and told.get("problems"):
            raise JobFileError([Problem.from_dict(problem) for problem in told["problems"]])
        if code == "unauthorized":
            raise errors.NoServer(
                f"the server at {self._url} belongs to another home or user: it refuses the token of this one"
            )
        raise _BY_CODE.get(code, errors.OrchError)(message)


def _directly(request: Callable[[], urllib3.BaseHTTPResponse]) -> urllib3.BaseHTTPResponse:
    return request()


def _authorities() -> str | None:
    """None: whom the system trusts."""
    named = os.environ.get(CA_VARIABLE)
    if named and not os.path.isfile(named):  # noqa: PTH113 - pathlib is not needed here otherwise
        raise errors.WrongUse(f"{CA_VARIABLE} names {named}, and there is no such file")
    return named or None


def _busy(answer: urllib3.BaseHTTPResponse) -> str:
    """What a 503 says for itself; empty where it says nothing."""
    try:
        return str(json.loads(answer.data)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return ""


def _why(error: Exception) -> str:
    if isinstance(error, urllib3.exceptions.SSLError):
        return f"TLS with it failed: {error}; {CA_VARIABLE} names the certificates to trust"
    if isinstance(error, urllib3.exceptions.NewConnectionError):
        return "connection refused" if "refused" in str(error) else "it cannot be reached"
    if isinstance(error, urllib3.exceptions.TimeoutError):
        return "it does not answer in time"
    return "the connection broke off"
