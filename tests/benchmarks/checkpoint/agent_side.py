"""The agent's side of a save and nothing else: the agents' own server and slots, with no storage behind them.

`python -m tests.benchmarks.checkpoint.agent_side FOLDER`: serves FOLDER/agent.sock until its input ends.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from orch_workers.checkpoint import Staging
from orch_workers.session import SessionServer
from orch_workers.training.page import Page


class Handlers:
    def __init__(self, staging: Staging) -> None:
        self._staging = staging

    def on_hello(self, hello: Any) -> dict[str, Any]:
        rules = {"steps": None, "epochs": None, "first": False, "last": False}
        return {"generation": "000001.000001", "rules": rules, "restore": None}

    def on_save(self, size_bytes: int, **_: Any) -> tuple[int, str] | None:
        given = self._staging.acquire(size_bytes)
        return None if given is None else (given.index, given.path)

    def on_saved(self, index: int, info: Any) -> None:
        self._staging.ready(index)

    def on_save_failed(self, index: int, message: str) -> None:
        self._staging.abandon()

    def ignore(self, *_: Any) -> None: ...

    on_metrics = on_note = on_mismatch = on_restored = on_finished = ignore


def main() -> None:
    folder = Path(sys.argv[1])
    page = folder / "page"
    Page.make(str(page))
    staging = Staging(folder / "slots")
    server = SessionServer(folder / "agent.sock", str(page), Handlers(staging))
    print("ready", flush=True)
    sys.stdin.read()
    server.close()
    staging.sweep()


if __name__ == "__main__":
    main()
