"""A whole checkpoint into another storage, where it is a restore point of its own.

The objects are the same, byte for byte, under the same names; the record of its generation goes with them, so that
what is there is a chain. Every tensor's digest is checked between reading and writing. Everything is create-only and
in the order of a commit, so a copy that broke off does not exist, and the same call goes on with it.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

from orch_workers.checkpoint import blobs
from orch_workers.checkpoint.content import Content, matches, read_exactly, shard_problems
from orch_workers.checkpoint.errors import AlreadyExists, CheckpointError, Damaged, NotFound
from orch_workers.checkpoint.format import DIGEST_CHUNK_BYTES, MANIFEST_BYTES_MAX

if TYPE_CHECKING:
    from orch_workers.checkpoint.catalog import Catalog, RestorePoint
    from orch_workers.checkpoint.content import Moved
    from orch_workers.checkpoint.format import RankManifest

READ_BYTES = 16 << 20
READS_AT_ONCE = 8


class Copied(NamedTuple):
    """`size_bytes`: of the checkpoint; `there_bytes` of it were there already, and matched their digests."""

    point: RestorePoint
    size_bytes: int
    there_bytes: int
    already: bool
    """The whole checkpoint was there."""


def copy(source: Catalog, point: RestorePoint, target: Catalog, *, moved: Moved | None = None) -> Copied:
    """Copies one checkpoint to `target`, which is of the same job id. Holds one shard in memory (256 MiB, or as much
    as the largest tensor has).

    Damaged: the source is not what was committed, or the target holds something else under one of its names; no
    checkpoint is made then. CheckpointError: as a restore point it would not stand beside what the target has.
    """
    if source.job_id != target.job_id:
        raise ValueError(f"a checkpoint of {source.job_id} cannot become one of {target.job_id}")
    if (reason := _mark(source, point)) is not None:
        raise Damaged(f"{point} is in quarantine: {reason}")
    content = Content.open(source, point)
    for problem in shard_problems(content).values():
        raise Damaged(problem)
    _begin(source, point, target)
    there_bytes = 0
    with ThreadPoolExecutor(READS_AT_ONCE, thread_name_prefix="copy") as pool:
        for part in content.ranks:
            for number, shard in enumerate(part.shards):
                there_bytes += _copy_shard(source, target, part, number, pool)
                if moved is not None:
                    moved(shard.size_bytes)
    there_bytes += _copy_blobs(content, target, moved)
    for rank in range(len(content.ranks)):
        _copy_object(source, target, source.rank_path(point.generation, point.step, rank))
    new = _copy_object(source, target, source.manifest_path(point.generation, point.step))
    return Copied(point, content.manifest.size_bytes, there_bytes, already=not new)


def _mark(source: Catalog, point: RestorePoint) -> str | None:
    return next((reason for other, reason in source.quarantined().items() if other[:2] == point[:2]), None)


def _begin(source: Catalog, point: RestorePoint, target: Catalog) -> None:
    """The generation's record, unless the target's chain leads to the checkpoint as it is."""
    newest = target.newest_generation()
    record = source.generation_path(point.generation)
    where = f"{target.storage.url}/{target.job_id}"
    if newest is not None and newest >= point.generation:
        if not target.chain_of(newest).admits(point.generation, point.step):
            raise CheckpointError(
                f"{where} holds a newer generation, on whose chain {point} does not lie: it could not be restored "
                f"there; copy it to another place"
            )
        return
    chain = source.chain_of(point.generation)
    lost = [other for other in target.restore_points() if not chain.admits(other.generation, other.step)]
    if lost:
        raise CheckpointError(
            f"{where} holds {lost[0]}, which does not lie on the chain of {point} and could not be restored any more "
            f"with it beside; copy it to another place"
        )
    _copy_object(source, target, record)


def _copy_object(source: Catalog, target: Catalog, path: str) -> bool:
    """A small one. False: it was there."""
    try:
        data = source.storage.read(path, 0, MANIFEST_BYTES_MAX)
    except NotFound as error:
        raise Damaged(f"{path} is missing") from error
    try:
        return target.storage.create(path, data)
    except AlreadyExists as error:
        raise Damaged(f"{target.storage.url}: {path} is there and holds something else") from error


def _copy_shard(
    source: Catalog, target: Catalog, part: RankManifest, number: int, pool: ThreadPoolExecutor
) -> int:
    """How many bytes were there already."""
    shard = part.shards[number]
    path = source.path(shard.path)
    try:
        there = target.storage.size(path)
    except NotFound:
        target.storage.create(path, _read_shard(source, part, number, pool))
        return 0
    if there != shard.size_bytes:
        raise Damaged(
            f"{target.storage.url}: {path} is there and has {there} bytes instead of {shard.size_bytes}"
        )
    try:
        _read_shard(target, part, number, pool)
    except Damaged as error:
        raise Damaged(f"{target.storage.url}: what is there is not this checkpoint's: {error}") from error
    return shard.size_bytes


def _copy_blobs(content: Content, target: Catalog, moved: Moved | None) -> int:
    """The bytes of files; how many of them were there already. What is there and does not match is replaced."""
    there_bytes = 0
    for part in blobs.parts_of(content.ranks).values():
        data = memoryview(bytearray(part.size_bytes))
        try:
            blobs.read(target, part, data)
            there_bytes += part.size_bytes
        except Damaged:
            blobs.read(content.catalog, part, data)
            target.storage.delete(blobs.path_of(target, part))
            target.storage.create(blobs.path_of(target, part), data)
        if moved is not None:
            moved(part.size_bytes)
    return there_bytes


def _read_shard(catalog: Catalog, part: RankManifest, number: int, pool: ThreadPoolExecutor) -> memoryview:
    """A whole shard, header and every tensor checked."""
    shard = part.shards[number]
    path = catalog.path(shard.path)
    whole = memoryview(bytearray(shard.size_bytes))
    reads = [
        pool.submit(read_exactly, catalog, path, at, whole[at : at + READ_BYTES])
        for at in range(0, shard.size_bytes, READ_BYTES)
    ]
    for read in reads:
        read.result()
    checks = [pool.submit(matches, catalog, path, 0, whole[: shard.data_offset], shard.header_digest)]
    names = ["header"]
    for tensor in part.tensors:
        if tensor.shard != number:
            continue
        begin = shard.data_offset + tensor.start
        for chunk, digest in enumerate(tensor.digests):
            at = begin + chunk * DIGEST_CHUNK_BYTES
            data = whole[at : min(at + DIGEST_CHUNK_BYTES, begin + tensor.size_bytes)]
            checks.append(pool.submit(matches, catalog, path, at, data, digest))
            names.append(f"tensor {tensor.name!r}")
    for name, check in zip(names, checks, strict=True):
        if not check.result():
            raise Damaged(f"{path}: {name} does not match its digest")
    return whole


def bytes_of(source: Catalog, point: RestorePoint) -> int:
    """What a copy will move, for whoever shows progress. Damaged: it cannot be copied anyway."""
    content = Content.open(source, point)
    files = sum(part.size_bytes for part in blobs.parts_of(content.ranks).values())
    return files + sum(shard.size_bytes for _, shard in content.shards())


__all__ = ["Copied", "bytes_of", "copy"]
