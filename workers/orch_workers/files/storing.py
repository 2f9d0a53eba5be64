"""Carries a version from this machine to storage: blobs, then the rank's manifest, then the step's, which is the
commit. Each is create-only and may be tried again; what is there already is not sent again.
"""

from __future__ import annotations

import mmap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from orch_workers.checkpoint import blobs
from orch_workers.checkpoint.catalog import Catalog
from orch_workers.checkpoint.errors import AlreadyExists, Damaged, NotFound
from orch_workers.checkpoint.file_records import PartRecord
from orch_workers.checkpoint.format import RankManifest, encode
from orch_workers.checkpoint.staging import Snapshot
from orch_workers.checkpoint.writer import Committed, commit_step
from orch_workers.files.local import Local, Version
from orch_workers.training.slots import format_generation

MENDS_MAX = 3
"""Times blobs that went while they were being named are written again."""


def commit(
    catalog: Catalog,
    version: Version,
    snapshot: Snapshot,
    *,
    code_digest: str | None,
    distrusted: set[str],
) -> Committed:
    """Commits a version. `distrusted`: blobs that were found damaged; they are looked at, and replaced if they are.

    Raises Superseded when it lies off the chain, and the StorageErrors, after which the same call may be repeated.
    """
    generation, number = version.generation, version.number
    catalog.assert_admits(generation, number)
    sources = _sources(version, snapshot)
    stored = blobs.stored(catalog)
    for name in [name for name in distrusted if name in sources]:
        _replace_damaged(catalog, sources[name][0])
        stored.pop(name, None)
        distrusted.discard(name)
    _send(catalog, [source for name, source in sources.items() if name not in stored])
    manifest = RankManifest(
        job=catalog.job_id,
        generation=format_generation(generation),
        step=number,
        rank=0,
        world_size=1,
        kind=blobs.KIND,
        data_bytes=0,
        shards=(),
        tensors=(),
        files=version.files,
        meta=_meta(version),
    )
    try:
        catalog.storage.create(catalog.rank_path(generation, number, 0), encode(manifest))
    except AlreadyExists:
        catalog.storage.settle(catalog.rank_path(generation, number, 0))
    done = commit_step(catalog, generation, number, world_size=1, code_digest=code_digest)
    parts = [part for part, _, _ in sources.values()]
    for _ in range(MENDS_MAX):
        gone = blobs.missing(catalog, parts)
        if not gone:
            break
        # Somebody removed the last other checkpoint that named them, between our look and our commit.
        _send(catalog, [sources[part.name] for part in gone])
    return done


def _meta(version: Version) -> dict[str, Any]:
    metrics = dict(version.metrics or {})
    if version.step is not None:
        metrics.setdefault("step", version.step)
    return {
        "step": version.number,
        "epoch": version.epoch,
        "metrics": metrics or None,
        "kind": blobs.KIND,
        "frameworks": None,
        "script_step": version.step,
        "left_out": list(version.left_out),
        "took_s": version.took_s,
    }


_Source = tuple[PartRecord, Path, int]
"""A part, the file it is in, and where it begins."""


def _sources(version: Version, snapshot: Snapshot) -> dict[str, _Source]:
    found: dict[str, _Source] = {}
    for number, file in enumerate(version.files):
        at = 0
        for part in file.parts:
            found.setdefault(part.name, (part, Local.file_of(snapshot, number), at))
            at += part.size_bytes
    return found


def _send(catalog: Catalog, sources: list[_Source]) -> None:
    if not sources:
        return
    with ThreadPoolExecutor(catalog.storage.writes_at_once, thread_name_prefix="blobs") as pool:
        sent = [pool.submit(_send_one, catalog, source) for source in sources]
        try:
            for future in sent:
                future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _send_one(catalog: Catalog, source: _Source) -> None:
    part, path, start = source
    with path.open("rb") as file:
        # Never closed by hand: a client may hold on to what it was given. It goes with the last who does.
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    piece = memoryview(mapped)[start : start + part.size_bytes]
    try:
        catalog.storage.create(blobs.path_of(catalog, part), piece)
    except AlreadyExists:
        # Of that size and with other bytes: what is there is damaged, whoever wrote it.
        _replace_damaged(catalog, part)
        catalog.storage.create(blobs.path_of(catalog, part), piece)


def _replace_damaged(catalog: Catalog, part: PartRecord) -> None:
    """Removes a blob whose bytes are not those of its name; nobody can use it."""
    try:
        blobs.read(catalog, part, memoryview(bytearray(part.size_bytes)))
    except (Damaged, NotFound):
        catalog.storage.delete(blobs.path_of(catalog, part))
