"""Brings a version from storage to this machine, every byte checked against its digest."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from orch_workers.checkpoint import blobs
from orch_workers.checkpoint.catalog import Catalog, RestorePoint
from orch_workers.checkpoint.errors import CheckpointError, Damaged
from orch_workers.checkpoint.file_records import FileRecord, PartRecord
from orch_workers.checkpoint.format import RankManifest
from orch_workers.files.local import Version


def fetch(catalog: Catalog, point: RestorePoint, folder: Path, damaged: set[str]) -> Version:
    """Fills `folder` with the files `0`, `1`, … of a checkpoint. Damaged: with what differs, and the blobs in
    question in `damaged`.
    """
    manifest = catalog.manifest(point)
    part = catalog.rank_manifest(point, manifest, 0)
    if manifest.kind != blobs.KIND:
        raise CheckpointError(
            f"{point} holds a state that `import orch` saved, and no files that a script wrote"
        )
    for number, file in enumerate(part.files):
        if not file.link:
            _fetch_file(catalog, file, folder / str(number), damaged)
    return version_of(point, part)


def version_of(point: RestorePoint, part: RankManifest) -> Version:
    meta: dict[str, Any] = part.meta
    left_out = meta.get("left_out") or ()
    return Version(
        point.generation,
        point.step,
        part.files,
        step=meta.get("script_step"),
        epoch=meta.get("epoch"),
        metrics=meta.get("metrics"),
        left_out=tuple(map(str, left_out)),
    )


def _fetch_file(catalog: Catalog, file: FileRecord, target: Path, damaged: set[str]) -> None:
    at = 0
    starts: list[tuple[PartRecord, int]] = []
    for part in file.parts:
        starts.append((part, at))
        at += part.size_bytes
    descriptor = os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    try:

        def one(part: PartRecord, start: int) -> None:
            data = memoryview(bytearray(part.size_bytes))
            try:
                blobs.read(catalog, part, data)
            except Damaged:
                damaged.add(part.name)
                raise
            while data:
                written = os.pwrite(descriptor, data, start)
                data, start = data[written:], start + written

        with ThreadPoolExecutor(catalog.storage.reads_at_once, thread_name_prefix="fetch") as pool:
            for future in [pool.submit(one, part, start) for part, start in starts]:
                future.result()
    finally:
        os.close(descriptor)
