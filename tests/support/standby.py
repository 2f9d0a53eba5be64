"""A script run twice, afresh and in a standby that took over, and all that can be seen of it."""

from __future__ import annotations

import queue
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orch_workers.process.guarded import Exited, Gone, GuardedProcess
from orch_workers.shipping import bundle
from orch_workers.standby.standby import Standby
from support.server import wait_for

if TYPE_CHECKING:
    from collections.abc import Sequence

LIMIT_S = 180.0

# What stands in site-packages: each does at import what its name says.
LIBRARIES = {
    "plain": "VALUE = 1",
    "reads_env": "import os\nTHREADS, BACKEND = map(os.environ.get, ('OMP_NUM_THREADS', 'KERAS_BACKEND'))",
    "sets_env": "import os\nos.environ['SET_BY_A_LIBRARY'] = '1'",
    "reads_argv": "import argparse, sys\nARGUMENTS = sys.argv[1:]",
    "starts_thread": "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()",
    "draws": "import random\nSALT = random.random()",
    "keeps_device": "import tempfile\nFILE = tempfile.TemporaryFile(dir='/dev/shm')",
    "connects": "import socket\nwith socket.socket() as one:\n    one.connect_ex(('127.0.0.1', 9))",
    "binds_local": "import socket\nwith socket.socket() as one:\n    one.bind(('127.0.0.1', 0))",
    "starts_process": "import subprocess\nCHILD = subprocess.Popen(['sleep', '1000'])",
    "warns": "import warnings\nwarnings.warn('this library is old', UserWarning)",
    "prints": "print('this library talks')",
    "filters": "import warnings\nwarnings.filterwarnings('ignore', message='nobody')",
    "at_exit": "import atexit\natexit.register(print, 'the library leaves')",
    "at_exit_too": "import atexit\natexit.register(print, 'the other library leaves')",
    "uses_settings": "import settings_of_mine\nVALUE = settings_of_mine.VALUE",
    "fails": "raise ImportError('needs what is not there')",
    "default_type": "import sys\nLIMIT = sys.getrecursionlimit()",
}


@dataclass
class Outcome:
    code: int | None
    log: str
    files: dict[str, bytes]


class Stage:
    """One job's folder, and both places where its guards work."""

    def __init__(self, folder: Path, **files: str) -> None:
        self.folder = folder
        self.work = folder / "work"
        self.work.mkdir()
        self.libraries = folder / "lib" / "site-packages"
        self.libraries.mkdir(parents=True)
        for name, text in LIBRARIES.items():
            (self.libraries / f"{name}.py").write_text(text + "\n")
        for name, text in files.items():
            path = self.work / name.replace("__", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.with_suffix(".py").write_text(text)
        self.bundle = bundle.ensure(folder / "node")
        self.env = {
            "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
            "HOME": str(folder),
            "LANG": "C.UTF-8",
            "PYTHONHASHSEED": "5",
            "PYTHONPATH": f"{self.bundle}:{self.libraries}",
            "ORCH_SOCKET": str(folder / "socket"),
            "ORCH_GENERATION": "000001.000001",
            "MASTER_PORT": "1",
        }
        self.log = folder / "log"
        self._events: queue.SimpleQueue[object] = queue.SimpleQueue()
        self._over = threading.Event()
        self.made: list[GuardedProcess] = []
        self.standby = self.new_standby()

    def new_standby(self, **more: Any) -> Standby:
        places = (self.folder / "state", self.folder / "state" / "standby")
        return Standby(places, enabled=True, on_event=self._events.put, **more)

    def close(self) -> None:
        self.standby.end()
        for process in self.made:
            process.kill()
            process.wait_gone(LIMIT_S)

    # starts

    def start(self, argv: Sequence[str]) -> GuardedProcess:
        """Afresh."""
        env, place = self.standby.start(argv, self.env, self.work, self.bundle)
        process = GuardedProcess.start(
            argv, env=env, cwd=self.work, log_path=self.log, state_dir=place, on_event=self._events.put
        )
        self.made.append(process)
        return process

    def fresh(self, *argv: str) -> Outcome:
        self._clear()
        self.start(argv)
        return self.finish()

    def warm(self) -> dict[str, Any]:
        """Gets a standby ready; what is told of it."""
        self.standby.began(self._over, lambda: True)
        wait_for(
            "a standby is ready", lambda: self.standby.status()["state"] == "ready" or self._why(), LIMIT_S
        )
        return self.standby.status()

    def _why(self) -> bool:
        return bool(self.standby.status().get("why"))

    def take_over(self, *argv: str) -> GuardedProcess | None:
        env = {**self.env, "ORCH_GENERATION": "000001.000002", "MASTER_PORT": "2"}
        process = self.standby.take_over(argv, env, self.work, self.log)
        if process is not None:
            self.made.append(process)
        return process

    def taken(self, *argv: str) -> Outcome:
        self._clear()
        assert self.take_over(*argv) is not None, "the standby did not take over"
        return self.finish()

    def both(self, *argv: str) -> tuple[Outcome, Outcome, dict[str, Any]]:
        """The outcomes of a fresh start and of a take-over, and what was told of the standby before."""
        fresh = self.fresh(*argv)
        told = self.warm()
        return fresh, self.taken(*argv), told

    def finish(self) -> Outcome:
        exited = self._events.get(timeout=LIMIT_S)
        assert isinstance(exited, Exited), exited
        assert isinstance(self._events.get(timeout=LIMIT_S), Gone)
        files = {
            str(path.relative_to(self.work)): path.read_bytes()
            for path in sorted(self.work.rglob("out*"))
            if path.is_file()
        }
        return Outcome(exited.code, self.log.read_text(), files)

    def _clear(self) -> None:
        self.log.unlink(missing_ok=True)
        for path in self.work.rglob("out*"):
            path.unlink()
