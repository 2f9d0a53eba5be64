"""The agent's end of the socket: serves the one training process of one start.

A server lives as long as one start of the command and is made anew for the next, so that nobody who was left
over from an earlier start can be taken for the present one. The messages: training/protocol.py.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import struct
import threading
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from orch_workers.training.protocol import LINE_BYTES_MAX, PROTOCOL_VERSION

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

CONNECTIONS_MAX = 16
"""At one time; one is served, the others are only told why they are not."""
HELLO_LIMIT_S = 30.0
BUSY_POLL_S = 0.02
REST_LIMIT_S = 2.0
"""For reading what a process that is gone had still said; it lies in the socket, and takes no time."""
SOCKET_PATH_BYTES_MAX = 107
"""unix(7): sun_path, less its terminating zero."""
_RECEIVE_BYTES = 1 << 16
_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid: unix(7), SO_PEERCRED

T = TypeVar("T")
_log = logging.getLogger(__name__)

# What a message must have; other fields pass through to the handlers that take them.
_FIELDS: dict[str, dict[str, type | tuple[type, ...]]] = {
    "hello": {"protocol": int, "pid": int},
    "restored": {"step": int, "source": str, "seconds_s": (int, float)},
    "started": {"from": str, "counts": dict, "skipped": list, "missing": list, "reshaped": list},
    "mismatch": {"message": str},
    "save": {"size_bytes": int, "step": int, "reason": str, "wait": bool},
    "saved": {"index": int, "step": int},
    "save_failed": {"index": int, "message": str},
    "metrics": {"step": int, "epoch": int, "values": dict},
    "note": {"level": str, "message": str},
    "finished": {"step": int, "epoch": int},
}


class SessionRefusedError(Exception):
    """Raised by `Handlers.on_hello`: the training process shows the sentence to its user and ends."""


class BusyError(Exception):
    """Raised by `Handlers.on_save`: there is no free slot now, and the process must have one."""


class ProtocolError(Exception):
    """What came is no message of this protocol; the connection is closed."""


class Handlers(Protocol):
    """The agent. Called from the connection's thread, one message at a time, in order.

    What raises is logged and answered as `refused` (hello) or `busy` (save); the session goes on.
    """

    def on_hello(self, hello: Mapping[str, Any]) -> Mapping[str, Any]:
        """The fields of `welcome`: generation, rules, restore. May block; may raise SessionRefusedError."""
        ...

    def on_save(self, size_bytes: int, *, step: int, reason: str, wait: bool) -> tuple[int, str] | None:
        """Index and path of a free slot, or None: busy. BusyError: asked again until there is one."""

    def on_saved(self, index: int, info: Mapping[str, Any]) -> None:
        """`info` is the message: step, epoch, reason, blocked_s."""

    def on_save_failed(self, index: int, message: str) -> None: ...
    def on_metrics(self, step: int, epoch: int, values: Mapping[str, Any]) -> None: ...
    def on_note(self, level: str, message: str) -> None: ...
    def on_started(self, label: str, counts: Any, skipped: Any, missing: Any, reshaped: Any) -> None: ...
    def on_mismatch(self, message: str) -> None: ...
    def on_restored(self, step: int, source: str, seconds_s: float) -> None: ...
    def on_finished(self, step: int, epoch: int) -> None: ...


class SessionServer:
    """Listens from the constructor on, until `close`."""

    def __init__(self, socket_path: Path, page: str, handlers: Handlers) -> None:
        """`socket_path` lies in a folder that only we can enter; what an earlier server left is replaced.

        Raises ValueError for a path that is too long.
        """
        size = len(os.fsencode(socket_path))
        if size > SOCKET_PATH_BYTES_MAX:
            raise ValueError(
                f"{socket_path}: a socket's path may have {SOCKET_PATH_BYTES_MAX} bytes, this has {size}"
            )
        self._path = socket_path
        self._page = page
        self._handlers = handlers
        self._lock = threading.Lock()
        self._turn = threading.Lock()
        """Held by whoever speaks with the handlers: once `end` or `close` has had it, nobody else does."""
        self._ended = threading.Event()
        self._at_rest = threading.Condition(self._lock)
        self._speaking = 0
        """Connections that have said hello and have not ended."""
        self._owner: int | None = None
        self._connections: set[socket.socket] = set()
        self._closed = False
        socket_path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._listener.bind(str(socket_path))
            socket_path.chmod(0o600)
            self._listener.listen(CONNECTIONS_MAX)
        except OSError:
            self._listener.close()
            raise
        self._thread = threading.Thread(target=self._accept_all, name="session", daemon=True)
        self._thread.start()

    @property
    def owner(self) -> int | None:
        """Pid of the process that said hello, None before. It stays when that process has ended."""
        return self._owner

    def end(self) -> None:
        """The process is gone: returns when what it had said last has been passed on. From then on, whatever a thread
        still holds of its words reaches no handler: they would be taken for those of the process that follows.
        """
        self._ended.set()
        with self._at_rest:
            self._at_rest.wait_for(lambda: not self._speaking, REST_LIMIT_S)
        self.close()

    def close(self) -> None:
        """Ends every connection and removes the socket; repeatable. No handler is called any more."""
        self._ended.set()
        with self._turn, self._lock:
            if self._closed:
                return
            self._closed = True
            connections = list(self._connections)
        for one in (self._listener, *connections):
            # shutdown, not close: it wakes the thread that waits in accept or recv, and that thread closes.
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._path.unlink(missing_ok=True)

    # threads

    def _accept_all(self) -> None:
        with self._listener:
            while True:
                try:
                    connection, _ = self._listener.accept()
                except OSError:
                    if self._closed:
                        return
                    raise
                with self._lock:
                    if self._closed or len(self._connections) >= CONNECTIONS_MAX or not _is_ours(connection):
                        connection.close()
                        continue
                    self._connections.add(connection)
                threading.Thread(target=self._serve, args=(connection,), name="session", daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection:
                lines = _Lines(connection)
                connection.settimeout(HELLO_LIMIT_S)
                hello = lines.next()
                if hello is None or not self._greet(connection, hello):
                    return
                connection.settimeout(None)
                self._listen(connection, lines)
        except ProtocolError as error:
            self._guarded(
                "note", self._handlers.on_note, "error", f"the training process was cut off: {error}"
            )
        except OSError:
            pass  # it ended, or we were closed; the guard tells which
        finally:
            with self._lock:
                self._connections.discard(connection)

    def _listen(self, connection: socket.socket, lines: _Lines) -> None:
        with self._at_rest:
            self._speaking += 1
        try:
            while (message := lines.next()) is not None:
                answer = self._handle(message)
                if answer is not None:
                    _send(connection, answer)
        finally:
            with self._at_rest:
                self._speaking -= 1
                self._at_rest.notify_all()

    def _greet(self, connection: socket.socket, hello: dict[str, Any]) -> bool:
        """Answers the first message; True when this connection is the session's from now on."""
        try:
            self._claim(hello)
            welcome = dict(self._handlers.on_hello(hello))
        except (SessionRefusedError, ProtocolError) as error:
            refusal = str(error)
        except Exception as error:
            _log.exception("hello could not be answered")
            refusal = f"the agent could not prepare the start: {type(error).__name__}: {error}"
        else:
            _send(
                connection, {"type": "welcome", "protocol": PROTOCOL_VERSION, "page": self._page, **welcome}
            )
            return True
        _send(connection, {"type": "refused", "message": refusal})
        return False

    def _claim(self, hello: dict[str, Any]) -> None:
        """Makes the sender the owner of the session; SessionRefusedError says why not."""
        if hello.get("type") != "hello":
            raise SessionRefusedError(f"the first message must be hello, not {hello.get('type')!r}")
        if hello.get("protocol") != PROTOCOL_VERSION:
            raise SessionRefusedError(
                f"the training side speaks protocol {hello.get('protocol')}, the agent {PROTOCOL_VERSION}: "
                "two versions of orch meet here; leave the one that orch puts on PYTHONPATH in its place"
            )
        _check(hello)
        with self._lock:
            if self._owner is None:
                self._owner = hello["pid"]
                return
            owner = self._owner
        raise SessionRefusedError(
            f"process {owner} of this worker has called orch.training already, and process {hello['pid']} "
            "calls it again: one process keeps a worker's state, once. Call it in the main process only "
            '(below `if __name__ == "__main__":`); several ranks are several workers (resources.workers)'
        )

    def _handle(self, message: dict[str, Any]) -> dict[str, Any] | None:
        """Passes one message on; returns the answer where the protocol has one."""
        _check(message)
        kind, handlers = message["type"], self._handlers
        if kind == "hello":
            raise ProtocolError("a second hello on one connection")
        if kind == "save":
            slot = self._slot(message)
            return {"type": "busy"} if slot is None else {"type": "slot", "index": slot[0], "path": slot[1]}
        if kind == "finished":
            self._guarded(kind, handlers.on_finished, message["step"], message["epoch"])
            return {"type": "ok"}
        if kind == "saved":
            self._guarded(kind, handlers.on_saved, message["index"], message)
        else:
            handler = getattr(handlers, f"on_{kind}")
            self._guarded(kind, handler, *(message[name] for name in _FIELDS[kind]))
        return None

    def _slot(self, message: dict[str, Any]) -> tuple[int, str] | None:
        asked = {name: message[name] for name in ("step", "reason", "wait")}
        while not self._ended.is_set():  # nobody is there to fill a slot after that
            try:
                return self._guarded("save", self._handlers.on_save, message["size_bytes"], **asked)
            except BusyError:
                self._ended.wait(BUSY_POLL_S)
        return None

    def _guarded(self, kind: str, handler: Callable[..., T], *values: Any, **named: Any) -> T | None:
        try:
            with self._turn:
                return None if self._closed else handler(*values, **named)
        except BusyError:
            raise
        except Exception:  # a fault of ours must not cut off the training process
            _log.exception("%s could not be handled", kind)
            return None


class _Lines:
    """Messages from a connection: JSON objects, one a line, none longer than LINE_BYTES_MAX."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._buffer = bytearray()

    def next(self) -> dict[str, Any] | None:
        """None at the end; what is left without a newline was never finished, and is dropped."""
        while (end := self._buffer.find(b"\n")) < 0:
            if len(self._buffer) > LINE_BYTES_MAX:
                raise ProtocolError(f"a line longer than {LINE_BYTES_MAX} bytes")
            piece = self._connection.recv(_RECEIVE_BYTES)
            if not piece:
                return None
            self._buffer += piece
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        try:
            message = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ProtocolError(f"a line that is no JSON: {error}") from None
        if not isinstance(message, dict):
            raise ProtocolError("a line that is no JSON object")
        return message


def _check(message: dict[str, Any]) -> None:
    fields = _FIELDS.get(message.get("type", ""))
    if fields is None:
        raise ProtocolError(f"unknown message {message.get('type')!r}")
    for name, kinds in fields.items():
        value = message.get(name)
        # bool is an int to isinstance, but not to us.
        if not isinstance(value, kinds) or (isinstance(value, bool) and kinds is not bool):
            raise ProtocolError(f"{message['type']}: {name} is {value!r:.100}")
        if isinstance(value, int) and value < 0:
            raise ProtocolError(f"{message['type']}: {name} is negative ({value})")


def _is_ours(connection: socket.socket) -> bool:
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    uid: int = _CREDENTIALS.unpack(raw)[1]
    return uid == os.getuid()


def _send(connection: socket.socket, message: dict[str, Any]) -> None:
    connection.sendall(json.dumps(message, separators=(",", ":")).encode() + b"\n")
