"""A real PostgreSQL on loopback for tests, with the programs that pgserver (PyPI) brings; else with Debian's.

Not by pgserver's own start: as root that makes an account, opens the folders above its data to everybody, and leaves
the server to an exit handler. PostgreSQL refuses to run as root: there it runs as `nobody`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import socket
import stat
import subprocess
from pathlib import Path
from typing import Any, Self

import psutil
import psycopg

from support.server import wait_for

USER = "orch"
NOBODY = "nobody"
OPTIONS = (
    # Durable against the death of its processes, which is what tests do to it; not against that of the machine.
    "fsync=off", "full_page_writes=off", "dynamic_shared_memory_type=mmap", "max_connections=200",
    "unix_socket_directories=", "listen_addresses=127.0.0.1", "shared_buffers=16MB", "log_checkpoints=off",
)  # fmt: skip


class Postgres:
    """One server below `folder`, a new one right below /tmp. Can be stopped, killed, frozen and started again."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._data = folder, folder / "data"
        self.password = secrets.token_hex(12)
        self._programs = _programs(folder)
        self._process: subprocess.Popen[bytes] | None = None
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]

    def __enter__(self) -> Self:
        self._data.mkdir(mode=0o700)
        secret = self._folder / "password"
        secret.write_text(self.password)
        if os.geteuid() == 0:
            for path in (self._folder, self._data, secret):
                shutil.chown(path, NOBODY)
        self._run(
            "initdb", "-D", self._data, "-U", USER, f"--pwfile={secret}", "--auth=scram-sha-256",
            "--encoding=UTF8", "--locale=C", "--no-sync",
        )  # fmt: skip
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.thaw()
        self.stop()

    @property
    def runs(self) -> bool:
        return self._process is not None

    def start(self) -> None:
        options = [part for option in OPTIONS for part in ("-c", option)]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._programs / "postgres", "-D", self._data, "-p", str(self.port), *options],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/", start_new_session=True, **_as_nobody(),
            )  # fmt: skip
        wait_for("PostgreSQL answers", self._answers)

    def stop(self, how: int = signal.SIGINT) -> None:
        """SIGINT: its clients are cut off, their transactions undone. SIGQUIT: at once, to recover when it starts."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(60)
            self._process = None

    def kill(self) -> None:
        """SIGKILL for all of it, in the middle of whatever it does."""
        for process in self._all():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        assert self._process is not None
        self._process.wait(60)
        self._process = None

    def freeze(self) -> None:
        """Everything stays connected, and nothing is answered."""
        for process in self._all():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.suspend()

    def thaw(self) -> None:
        for process in self._all():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()

    def database(self) -> str:
        """A new one; its URL as ORCH_STORE has it."""
        name = f"t{secrets.token_hex(6)}"
        self.sql(f"CREATE DATABASE {name}")
        return f"postgresql+psycopg://{USER}:{self.password}@127.0.0.1:{self.port}/{name}"

    def sql(self, statement: str, database: str = "postgres") -> list[Any]:
        with self.connect(database) as connection:
            done = connection.execute(statement)  # type: ignore[call-overload]
            return done.fetchall() if done.description else []

    def connect(self, database: str = "postgres") -> psycopg.Connection[Any]:
        return psycopg.connect(
            host="127.0.0.1", port=self.port, user=USER, password=self.password, dbname=database,
            autocommit=True, connect_timeout=30,
        )  # fmt: skip

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self._folder / "log").read_text()
        try:
            self.connect().close()
        except psycopg.OperationalError:
            return False
        return True

    def _all(self) -> list[psutil.Process]:
        if self._process is None:
            return []
        server = psutil.Process(self._process.pid)
        return [server, *server.children(recursive=True)]

    def _run(self, program: str, *arguments: object) -> None:
        done = subprocess.run(
            [self._programs / program, *map(str, arguments)],
            text=True, capture_output=True, check=False, timeout=120, cwd="/", **_as_nobody(),
        )  # fmt: skip
        assert done.returncode == 0, done.stderr


def _as_nobody() -> dict[str, Any]:
    """Options of subprocess: root's own programs may not be run by root."""
    if os.geteuid() != 0:
        return {}
    nobody = pwd.getpwnam(NOBODY)
    return {
        "user": nobody.pw_uid,
        "group": nobody.pw_gid,
        "extra_groups": [],
        "env": {"PATH": "/usr/bin:/bin"},
    }


def _programs(folder: Path) -> Path:
    """The folder of `postgres` and `initdb`, where whoever is to run them may."""
    spec = importlib.util.find_spec("pgserver")  # without its import, which has effects
    places = spec.submodule_search_locations if spec else None
    found = [Path(place) / "pginstall" / "bin" for place in places or ()]
    found += sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    programs = next((path for path in found if (path / "postgres").exists()), None)
    assert programs is not None, "no PostgreSQL here: `pip install pgserver`, or Debian's postgresql"
    if os.geteuid() != 0 or all(path.stat().st_mode & stat.S_IXOTH for path in programs.parents):
        return programs
    # The environment lies in a folder that root keeps to itself. The libraries are found from the programs, three up.
    copy = folder / "pgserver" / "pginstall"
    shutil.copytree(programs.parent, copy, ignore=shutil.ignore_patterns("include"))
    libraries = programs.parents[2] / "pgserver.libs"
    if libraries.is_dir():
        shutil.copytree(libraries, folder / libraries.name)
    return copy / "bin"
