"""A limit for calls over a socket that have none of their own: the socket is shut down, and the call fails.

A database that stands still (a frozen process, a machine out of memory) still acknowledges what TCP sends, so neither
keepalives nor the server's own limits end the wait.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator


class Patience:
    """Thread-safe; one thread looks after all calls, from the first one on."""

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s
        self._changed = threading.Condition()
        self._calls: dict[socket.socket, float] = {}
        self._thread: threading.Thread | None = None

    @contextlib.contextmanager
    def limited(self, descriptor: int) -> Iterator[None]:
        """What happens over this socket inside has `limit_s` altogether."""
        # A copy: its number stays ours even where the client closes its own within.
        with socket.socket(fileno=os.dup(descriptor)) as copy:
            with self._changed:
                self._calls[copy] = time.monotonic() + self.limit_s
                if self._thread is None:
                    self._thread = threading.Thread(
                        target=self._look_after, name="store-patience", daemon=True
                    )
                    self._thread.start()
                self._changed.notify()
            try:
                yield
            finally:
                with self._changed:
                    self._calls.pop(copy, None)

    def _look_after(self) -> None:
        with self._changed:
            while True:
                now = time.monotonic()
                for copy in [copy for copy, deadline in self._calls.items() if deadline <= now]:
                    del self._calls[copy]
                    with contextlib.suppress(OSError):
                        copy.shutdown(socket.SHUT_RDWR)
                nearest = min(self._calls.values(), default=None)
                # An earlier deadline than this one can only come with a notification.
                self._changed.wait(None if nearest is None else nearest - now)
