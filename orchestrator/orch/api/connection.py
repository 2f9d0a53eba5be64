"""One connection of the API: closed when its client is too slow to say what it wants, or to take the answer.

uvicorn itself waits without end for the first request of a connection and for the rest of one that has begun: with
some hundred of those, which anybody can open who reaches the port, nobody else gets in.
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

from orch.api.limits import HEAD_LIMIT_S, WRITE_LIMIT_S


class Connection(H11Protocol):
    """uvicorn's, with limits of time. The body's are the gate's, which knows who asks."""

    _late: asyncio.TimerHandle | None = None
    _stuck: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._cancel()
        else:
            # Part of a head; or the rest of a body whose request was refused, which is read to its end for as long, so
            # that the refusal is not lost.
            self._expect_head()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._stuck is None:
            self._stuck = self.loop.call_later(WRITE_LIMIT_S, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stuck is not None:
            self._stuck.cancel()
            self._stuck = None

    def shutdown(self) -> None:
        idle = self.cycle is None or self.cycle.response_complete
        super().shutdown()
        if idle and self.scheme == "https":
            self.transport.abort()  # TLS would wait for the other side's goodbye

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel()
        if self._stuck is not None:
            self._stuck.cancel()
        super().connection_lost(exc)

    def _expect_head(self) -> None:
        if self._late is None:
            self._late = self.loop.call_later(HEAD_LIMIT_S, self.transport.abort)

    def _cancel(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None
