"""Versions of files that no script wrote: a working folder, this machine's versions, and a storage."""

from __future__ import annotations

import threading

from orch_workers.checkpoint import Catalog, RestorePoint
from orch_workers.checkpoint.local import LocalStorage
from orch_workers.files.collecting import Collector
from orch_workers.files.fetching import fetch
from orch_workers.files.local import Local
from orch_workers.files.storing import commit

JOB = "files-1a2b"
G1 = (1, 1)


class Scene:
    """A working folder, this machine's versions and a storage."""

    def __init__(self, folder) -> None:
        self.folder, self.work = folder, folder / "work"
        self.work.mkdir()
        self.catalog = Catalog(LocalStorage(folder / "storage"), JOB)
        self.local = Local(folder / "local")
        self.collector = Collector(self.work, ["*"], self.local, threading.Condition(), folder / "aside")
        self.distrusted: set[str] = set()

    def write(self, **files: bytes) -> None:
        for name, content in files.items():
            (self.work / name).write_bytes(content)

    def take(self, number: int, generation=G1):
        outcome = self.collector.take(self.collector.looker.look(), generation, number, {})
        assert outcome.snapshot is not None, outcome.problem
        return outcome.snapshot

    def commit(self, number: int, generation=G1) -> RestorePoint:
        snapshot = self.take(number, generation)
        version = self.local.version(snapshot)
        commit(self.catalog, version, snapshot, code_digest=None, distrusted=self.distrusted)
        return RestorePoint(generation, number)

    def blobs(self) -> list[str]:
        folder = self.folder / "storage" / JOB / "blobs"
        return sorted(path.name for path in folder.iterdir()) if folder.exists() else []

    def fetched(self, point) -> dict[str, bytes]:
        _, folder = self.local.make(fetched=True)
        version = fetch(self.catalog, point, folder, self.distrusted)
        return {file.path: (folder / str(number)).read_bytes() for number, file in enumerate(version.files)}
