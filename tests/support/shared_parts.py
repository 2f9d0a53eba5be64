"""Two ranks whose slots are written as a gang writes them, without agents: they agree through calls."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from orch_workers.checkpoint import Catalog, commit_step, write_rank
from orch_workers.gang.sharing import Sharing
from orch_workers.training.slots import Slot
from orch_workers.training.snapshot import Adapters, plan, write


class Ranks:
    """`lose`: asked for each message; True loses it."""

    def __init__(self, catalog: Catalog, folder: Path, size: int = 2) -> None:
        self.catalog, self.folder, self.size = catalog, folder, size
        self.lose: Callable[[Mapping[str, Any]], bool] = lambda message: False
        self.sharing = [Sharing(rank, size, self._say) for rank in range(size)]

    def _say(self, rank: int, message: Mapping[str, Any]) -> None:
        if not self.lose(message):
            threading.Thread(target=self.sharing[rank].heard, args=(message,), daemon=True).start()

    def slot(self, rank: int, parts: dict[str, Any], generation: tuple[int, int], step: int) -> Path:
        meta = {"step": step, "epoch": 0, "metrics": {}, "kind": "state", "frameworks": {}}
        snapshot = plan(parts, Adapters().codecs(), meta)
        path = self.folder / f"slot-{rank}-{step}"
        Slot.create(str(path), snapshot.size_bytes)
        slot = Slot(str(path), writable=True)
        write(snapshot, slot, generation, step)
        slot.close()
        return path

    def write(
        self,
        rank: int,
        path: Path,
        generation: tuple[int, int],
        step: int,
        go_on: Callable[[float], bool] = lambda waited_s: True,
    ) -> None:
        slot = Slot(str(path))
        about = self.sharing[rank].about((generation, step), go_on)
        try:
            write_rank(self.catalog, slot, rank=rank, world_size=self.size, agreement=about)
        finally:
            slot.close()

    def save(self, parts: Callable[[int], dict[str, Any]], generation: tuple[int, int], step: int) -> None:
        """All ranks at once, and the commit."""
        slots = [self.slot(rank, parts(rank), generation, step) for rank in range(self.size)]
        with ThreadPoolExecutor(self.size) as pool:
            for done in [pool.submit(self.write, r, slots[r], generation, step) for r in range(self.size)]:
                done.result()
        commit_step(self.catalog, generation, step, world_size=self.size)
