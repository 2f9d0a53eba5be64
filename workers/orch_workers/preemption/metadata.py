"""HTTP to a provider's metadata service, which answers on a link-local address: short limits, no proxy, no redirect."""

from __future__ import annotations

import http.client
import json
import urllib.parse
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from orch_workers.preemption.notice import SourceError, SourceSilentError

if TYPE_CHECKING:
    from collections.abc import Mapping

LINK_LOCAL = "http://169.254.169.254"
ANSWER_LIMIT_S = 1.0
BODY_BYTES_MAX = 1 << 16


class Answer(NamedTuple):
    status: int
    body: bytes
    headers: Mapping[str, str]
    """Names in lower case."""

    @property
    def text(self) -> str:
        return self.body.decode("utf-8", "replace").strip()

    @property
    def wall_s(self) -> float | None:
        """What the service's own clock says, where it says so."""
        try:
            return parsedate_to_datetime(self.headers["date"]).timestamp()
        except (KeyError, TypeError, ValueError):
            return None

    def document(self) -> dict[str, Any]:
        """The body as a JSON object; SourceError for anything else."""
        try:
            found = json.loads(self.body)
        except (ValueError, RecursionError) as error:
            raise SourceError(f"its answer is no JSON ({self.text[:60]!r})") from error
        if not isinstance(found, dict):
            raise SourceError(f"its answer is no object ({self.text[:60]!r})")
        return found


class Metadata:
    """`base`: ``http://host[:port]``. Every request has a connection of its own: the service may be restarted."""

    def __init__(self, base: str = LINK_LOCAL, limit_s: float = ANSWER_LIMIT_S) -> None:
        parts = urllib.parse.urlsplit(base)
        if parts.scheme != "http" or not parts.hostname:
            raise ValueError(f"{base} is no http:// address of a metadata service")
        self._host, self._port, self._limit_s = parts.hostname, parts.port or 80, limit_s

    def get(self, path: str, headers: Mapping[str, str]) -> Answer:
        return self.ask("GET", path, headers)

    def ask(self, method: str, path: str, headers: Mapping[str, str]) -> Answer:
        """Any status is an answer, but a redirect: nobody is followed anywhere from here. SourceError, and
        SourceSilentError when nothing came in time.
        """
        connection = http.client.HTTPConnection(self._host, self._port, timeout=self._limit_s)
        try:
            connection.request(method, path, headers=dict(headers))
            response = connection.getresponse()
            body = response.read(BODY_BYTES_MAX + 1)
        except TimeoutError as error:
            raise SourceSilentError(f"no answer within {self._limit_s:g} s") from error
        except (OSError, http.client.HTTPException) as error:
            raise SourceError(f"{type(error).__name__}: {error}") from error
        finally:
            connection.close()
        if len(body) > BODY_BYTES_MAX:
            raise SourceError(f"its answer is longer than {BODY_BYTES_MAX} bytes")
        if 300 <= response.status < 400:
            raise SourceError(f"it answers with a redirect ({response.status}), which is not followed")
        return Answer(response.status, body, {name.lower(): text for name, text in response.getheaders()})


def unexpected(answer: Answer) -> SourceError:
    return SourceError(f"it answers with status {answer.status}")
