"""The training process's end of the socket to its agent: JSON lines, one request at a time."""

from __future__ import annotations

import json
import socket
from typing import Any

from .errors import AgentLostError
from .protocol import LINE_BYTES_MAX

CONNECT_LIMIT_S = 30.0
_RECEIVE_BYTES = 1 << 16


class Connection:
    """Not for several threads: the training loop is its only user."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(CONNECT_LIMIT_S)
        try:
            self._socket.connect(path)
        except OSError as error:
            self._socket.close()
            raise AgentLostError(f"no agent answers at {path}: {error}") from error
        # An answer may take as long as the agent needs (a slot comes free, a checkpoint is fetched); an agent
        # that dies closes the socket, and its guard ends this process.
        self._socket.settimeout(None)
        self._unsent = b""
        self._received = b""

    def request(self, message: dict[str, Any]) -> dict[str, Any]:
        """Sends and waits for the one line of answer. Raises AgentLostError when the agent has gone."""
        self.tell(message)
        while b"\n" not in self._received:
            if len(self._received) > LINE_BYTES_MAX:
                raise AgentLostError(f"the agent sent a line longer than {LINE_BYTES_MAX} bytes")
            try:
                more = self._socket.recv(_RECEIVE_BYTES)
            except OSError as error:
                raise AgentLostError(f"the connection to the agent broke: {error}") from error
            if not more:
                raise AgentLostError("the agent of this worker has gone away")
            self._received += more
        line, _, self._received = self._received.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def tell(self, message: dict[str, Any]) -> None:
        """Sends a message that must arrive; waits while the agent is slow to read."""
        try:
            self._socket.sendall(self._unsent + _line(message))
        except OSError as error:
            raise AgentLostError(f"the connection to the agent broke: {error}") from error
        self._unsent = b""

    def offer(self, message: dict[str, Any]) -> bool:
        """Sends a message that may be lost; never waits. False when it was dropped."""
        try:
            if self._unsent:
                self._unsent = self._unsent[self._send_now(self._unsent) :]
                if self._unsent:
                    return False
            line = _line(message)
            self._unsent = line[self._send_now(line) :]  # the rest of a line that has begun must follow
        except OSError:
            return False
        return True

    def close(self) -> None:
        self._socket.close()

    def _send_now(self, data: bytes) -> int:
        try:
            return self._socket.send(data, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return 0


def _line(message: dict[str, Any]) -> bytes:
    line = json.dumps(message, separators=(",", ":"), allow_nan=False).encode() + b"\n"
    if len(line) > LINE_BYTES_MAX:
        raise ValueError(
            f"a {message.get('type')} message of {len(line)} bytes is longer than {LINE_BYTES_MAX}"
        )
    return line
