"""The bytes of files that the user's own code wrote: `blobs/<digest>-<size>`, shared by the checkpoints that have them.

Named by their content, so what has not changed is not sent again. A blob goes when the last checkpoint that names it
goes; what a writer that was killed left is swept. A writer that found a blob in its place looks once more after its
commit (`missing`): whoever removed the last other checkpoint that named it may have been at work in the same moment.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from orch_workers.checkpoint.content import matches, read_exactly
from orch_workers.checkpoint.errors import Damaged, NotFound
from orch_workers.checkpoint.file_records import PartRecord

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from orch_workers.checkpoint.catalog import Catalog, RestorePoint
    from orch_workers.checkpoint.content import Content, Moved
    from orch_workers.checkpoint.format import RankManifest

PART_BYTES = 64 << 20
"""A file is cut into parts of so many bytes: what is held in memory for one, and what is sent again when a byte of
a large file changes.
"""
LEFTOVER_AGE_S = 3600.0
"""A blob that no checkpoint names may belong to a commit under way for so long."""
KIND = "files"
FOLDER = "blobs"


def path_of(catalog: Catalog, part: PartRecord) -> str:
    return catalog.path(FOLDER, part.name)


def parts_of(ranks: Iterable[RankManifest]) -> dict[str, PartRecord]:
    """By name, each once."""
    return {part.name: part for rank in ranks for file in rank.files for part in file.parts}


def stored(catalog: Catalog) -> dict[str, int]:
    """The blobs that are there: name → when they were written, microseconds by the storage's clock. One whose size
    is not the one in its name is damaged, and counts as not there.
    """
    found = {}
    for entry in catalog.storage.list(catalog.path(FOLDER)):
        name = entry.path.rsplit("/", 1)[1]
        if name.rpartition("-")[2] == str(entry.size_bytes):
            found[name] = entry.modified_us
    return found


def missing(catalog: Catalog, parts: Collection[PartRecord]) -> list[PartRecord]:
    """Those that are not there with their size; looked at one by one, because a list may be behind."""
    there = stored(catalog)
    return [part for part in parts if part.name not in there and not _is_there(catalog, part)]


def _is_there(catalog: Catalog, part: PartRecord) -> bool:
    try:
        return catalog.storage.size(path_of(catalog, part)) == part.size_bytes
    except NotFound:
        return False


def read(catalog: Catalog, part: PartRecord, view: memoryview) -> None:
    """Fills `view`, checked against the digest. Damaged when storage has something else, again and again."""
    path = path_of(catalog, part)
    read_exactly(catalog, path, 0, view)
    if not matches(catalog, path, 0, view, part.digest):
        raise Damaged(f"{path}: does not match its digest")


def problems(content: Content, *, deep: bool, moved: Moved | None = None) -> tuple[list[str], int]:
    """What is wrong with a checkpoint's files, one sentence a blob; and how many bytes were compared."""
    catalog, parts = content.catalog, parts_of(content.ranks)
    gone = {part.name for part in missing(catalog, list(parts.values()))} if parts else set[str]()
    found = [f"{FOLDER}/{name} is missing or has another size" for name in sorted(gone)]
    read_bytes = 0
    for part in parts.values() if deep else ():
        if part.name in gone:
            continue
        try:
            read(catalog, part, memoryview(bytearray(part.size_bytes)))
        except Damaged as error:
            found.append(str(error))
            continue
        read_bytes += part.size_bytes
        if moved is not None:
            moved(part.size_bytes)
    return found, read_bytes


def named_by(catalog: Catalog, point: RestorePoint) -> frozenset[str]:
    """Blobs that a checkpoint names; none of one of another kind. Damaged when that cannot be told."""
    known = catalog.blobs_named.get(point[:2])
    if known is None:
        manifest = catalog.manifest(point)
        ranks = range(manifest.world_size if manifest.kind == KIND else 0)
        known = frozenset(parts_of(catalog.rank_manifest(point, manifest, rank) for rank in ranks))
        catalog.blobs_named[point[:2]] = known
    return known


def remove_unnamed(catalog: Catalog, candidates: Collection[str]) -> int:
    """Removes those of `candidates` that no committed checkpoint names, on the chain or not; returns how many.

    None at all when a checkpoint cannot tell what it names.
    """
    unnamed = set(candidates)
    try:
        for point in catalog.committed():
            if not unnamed:
                break
            unnamed -= named_by(catalog, point)
    except Damaged:
        return 0
    for name in unnamed:
        catalog.storage.delete(catalog.path(FOLDER, name))
    return len(unnamed)


def sweep(catalog: Catalog) -> int:
    """Removes what no checkpoint names and no commit under way can need; returns how many."""
    oldest_us = (time.time() - LEFTOVER_AGE_S) * 1e6
    old = [name for name, written_us in stored(catalog).items() if written_us < oldest_us]
    return remove_unnamed(catalog, old)
