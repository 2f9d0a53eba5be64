"""The way to a server on another machine: `ssh` forwards a local port to its loopback address.

The API listens on loopback alone, so whoever may log in over there may use it, and nobody else. The server's
address and token are read through the same SSH, whose configuration (keys, hosts, jumps) is the user's own.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import socket
import subprocess
import time
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from orch.model.errors import NoServer, WrongUse

if TYPE_CHECKING:
    from collections.abc import Iterator

LOOPBACK = "127.0.0.1"
READ_LIMIT_S = 60.0
"""Long enough to type a passphrase."""
FORWARD_LIMIT_S = 30.0
CLOSE_LIMIT_S = 5.0
POLL_S = 0.02
ANSWER_CHARS_MAX = 64 << 10
_PORT = re.compile(r"http://(?:127\.0\.0\.1|localhost):(\d{1,5})/?")

# One line for any POSIX shell; the server's side is Linux, so its home is where platformdirs puts it there.
_READ_HOME = (
    'cd "${ORCH_HOME:-${XDG_DATA_HOME:-$HOME/.local/share}/orch}" 2>/dev/null'
    " && cat server.json && echo && cat token"
)


@contextlib.contextmanager
def tunnel(address: str) -> Iterator[tuple[str, str]]:
    """`ssh://[USER@]HOST[:PORT]` → (URL here, token), while the context lasts. NoServer, WrongUse."""
    ssh = shutil.which("ssh")
    if ssh is None:
        raise WrongUse(f"{address} needs the program `ssh`, and it is not on PATH")
    where = _destination(address)
    port, token = _read_server(ssh, where, address)
    local = _free_port()
    forward = [ssh, "-N", "-T", "-o", "ExitOnForwardFailure=yes", "-o", "ServerAliveInterval=15"]
    forward += ["-L", f"{LOOPBACK}:{local}:{LOOPBACK}:{port}", *where]
    # A session of its own: the Ctrl-C that ends a `--follow` must not cut its last words.
    process = subprocess.Popen(
        forward, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True
    )
    try:
        _wait_open(process, local, address)
        yield f"http://{LOOPBACK}:{local}", token
    finally:
        process.terminate()
        try:
            process.wait(CLOSE_LIMIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _destination(address: str) -> list[str]:
    """Arguments of ssh; `cluster_kind` has made sure that nothing in them can be taken for an option."""
    parts = urlsplit(address)
    user = f"{parts.username}@" if parts.username else ""
    return [*(["-p", str(parts.port)] if parts.port else []), f"{user}{parts.hostname}"]


def _read_server(ssh: str, where: list[str], address: str) -> tuple[int, str]:
    try:
        answer = subprocess.run(
            [ssh, "-T", *where, _READ_HOME],
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            timeout=READ_LIMIT_S,
        )
    except subprocess.TimeoutExpired:
        raise NoServer(f"{address} did not answer within {READ_LIMIT_S:.0f} s") from None
    text = answer.stdout.decode(errors="replace")[:ANSWER_CHARS_MAX]
    record, _, token = text.rstrip().rpartition("\n")
    try:
        url = str(json.loads(record)["url"])
    except (ValueError, KeyError, TypeError):
        # 255 is ssh's own failure, and it has said why on stderr.
        why = "ssh failed" if answer.returncode == 255 else "no server runs in the home folder over there"
        raise NoServer(f"{address}: {why}; start one with `orch server start` on that machine") from None
    found = _PORT.fullmatch(url)
    if found is None:
        raise NoServer(f"{address}: its server.json names {url!r}, which is not on that machine's loopback")
    return int(found[1]), token.strip()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_open(process: subprocess.Popen[bytes], port: int, address: str) -> None:
    deadline = time.monotonic() + FORWARD_LIMIT_S
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection((LOOPBACK, port), timeout=POLL_S * 10):
            return
        time.sleep(POLL_S)
    raise NoServer(f"{address}: ssh could not forward a port to the server over there")
