"""An agent with a real socket, real slot files and a real page; no Ray and no storage behind it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from orch_workers.training import protocol
from orch_workers.training.page import Page
from orch_workers.training.slots import Slot, format_generation

PROCESS_LIMIT_S = 120
SOURCES = [str(Path(__file__).parents[3] / folder) for folder in ("orchestrator", "workers", "policies")]


class FakeAgent:
    """Serves one training process after another. `messages`: all that was received; `snapshots`: copies of
    the READY slots, by step."""

    def __init__(self, folder: Path, rules: dict | None = None, save_at: int = 0, stop: bool = False):
        self.folder = folder
        self.rules = {"steps": None, "epochs": None, "first": True, "last": True, **(rules or {})}
        self.messages: list[dict] = []
        self.snapshots: dict[int, Path] = {}
        self.busy = False
        self.restore = True
        self.skip = 0
        self.start: dict | None = None
        self.generation = (1, 0)
        self._short = tempfile.mkdtemp(prefix="orch-", dir="/tmp")
        self.socket_path = f"{self._short}/agent.sock"
        self.page = self._new_page()
        self._word = {"save_at": save_at, "stop": stop}
        self._served = 0
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.socket_path)
        self._listener.listen()
        self._threads: list[threading.Thread] = []
        self._active = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(PROCESS_LIMIT_S)
        self.page.close()
        shutil.rmtree(self._short)

    def of(self, kind: str) -> list[dict]:
        return [message for message in self.messages if message["type"] == kind]

    def environment(self, **extra: str) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": os.pathsep.join(SOURCES),
            "PYTHONHASHSEED": "0",
            "PYTHONWARNINGS": "error",
            "OMP_NUM_THREADS": "1",
            protocol.ENV_SOCKET: self.socket_path,
            **extra,
        }

    def _new_page(self) -> Page:
        Page.make(str(self.folder / "page"))
        return Page(str(self.folder / "page"))

    def run(self, script: str, *, check: bool = True, **extra: str) -> subprocess.CompletedProcess[str]:
        """One start of the training process."""
        self.generation = (1, self.generation[1] + 1)
        self.page = self._new_page()
        self.page.put_word(**self._word)
        path = self.folder / "train.py"
        path.write_text(script)
        out, err = self.folder / "out", self.folder / "err"
        with out.open("wb") as stdout, err.open("wb") as stderr:
            process = subprocess.Popen(
                [sys.executable, str(path)],
                env=self.environment(**extra),
                cwd=self.folder,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
            )
            status = process.wait(PROCESS_LIMIT_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # loader workers of a killed process, as the guard does
        done = subprocess.CompletedProcess(process.args, status, out.read_text(), err.read_text())
        self.wait_idle()
        if check:
            assert done.returncode == 0, done.stderr
        return done

    def wait_idle(self) -> None:
        """Until everything that the last training process said has been taken in."""
        assert self._active.acquire(timeout=PROCESS_LIMIT_S)
        self._active.release()

    def say(self, *, save_at: int = 0, stop: bool = False) -> None:
        self._word = {"save_at": save_at, "stop": stop}
        self.page.put_word(**self._word)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rw", encoding="utf-8") as lines:
            if not self._active.acquire(blocking=False):
                lines.readline()
                refused = {"type": "refused", "message": "another process of this worker trains already"}
                lines.write(json.dumps(refused) + "\n")
                lines.flush()
                return
            try:
                for line in lines:
                    message = json.loads(line)
                    self.messages.append(message)
                    answer = self._answer(message)
                    if answer is not None:
                        lines.write(json.dumps(answer) + "\n")
                        lines.flush()
            except (ConnectionError, ValueError):
                pass
            finally:
                self._active.release()

    def _answer(self, message: dict) -> dict | None:
        kind = message["type"]
        if kind == "hello":
            return self._welcome()
        if kind == "save":
            if self.busy:
                return {"type": "busy"}
            index = self._served % 2
            self._served += 1
            path = self.folder / f"slot-{index}"
            if not path.exists() or Slot(str(path)).capacity_bytes < 4096 + message["size_bytes"]:
                Slot.create(str(path), message["size_bytes"])
            return {"type": "slot", "index": index, "path": str(path)}
        if kind == "saved":
            kept = self.folder / f"snapshot-{self.generation[1]}-{message['step']}"
            shutil.copyfile(self.folder / f"slot-{message['index']}", kept)
            self.snapshots[message["step"]] = kept
        if kind == "finished":
            return {"type": "ok"}
        return None

    def _welcome(self) -> dict:
        point = None
        if self.snapshots and self.restore:
            step = max(self.snapshots)
            header, _ = Slot(str(self.snapshots[step])).read()
            point = {
                "path": str(self.snapshots[step]),
                "source": "memory",
                "generation": format_generation(header.generation),
                "step": step,
                "skip": self.skip,
            }
        return {
            "start": None if point else self.start,
            "type": "welcome",
            "protocol": protocol.PROTOCOL_VERSION,
            "generation": format_generation(self.generation),
            "page": str(self.folder / "page"),
            "rules": self.rules,
            "restore": point,
        }
