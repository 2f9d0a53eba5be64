"""From a snapshot in shared memory to a checkpoint in storage.

Shards first, then the rank's manifest, then the step's: each create-only, each repeatable. A crash anywhere
leaves parts without a manifest, which do not exist; the same commit may simply be tried again, by whoever
holds the snapshot.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from importlib import metadata

from orch_workers.checkpoint.catalog import Catalog, RestorePoint
from orch_workers.checkpoint.chain import Generation, tuple_of
from orch_workers.checkpoint.errors import (
    AlreadyExists,
    NotFound,
    SnapshotChanged,
)
from orch_workers.checkpoint.format import (
    MANIFEST_BYTES_MAX,
    Manifest,
    Piece,
    RankManifest,
    RankRecord,
    ShardRecord,
    TensorRecord,
    check_entries,
    cut,
    digest_of,
    digests_of,
    encode,
    parse_rank,
    shard_header,
)
from orch_workers.training.slots import HEADER_BYTES, READY, Slot, SlotHeader, format_generation

SHARD_NAMES_TRIES_MAX = 16
"""Other names tried for a shard when an abandoned commit of the same step has left something else there."""


@dataclass(frozen=True)
class Committed:
    generation: Generation
    step: int
    size_bytes: int
    seconds_s: float
    already: bool = False
    """It was committed before, by an earlier try or an earlier agent."""


def commit(
    catalog: Catalog,
    slot: Slot,
    *,
    rank: int = 0,
    world_size: int = 1,
    code_digest: str | None = None,
) -> Committed:
    """Commits the READY snapshot in `slot`, of the generation and step that its header names.

    For a gang of one; with more ranks each calls `write_rank`, and when all have, the leader `commit_step`.
    The slot must stay untouched meanwhile (SnapshotChanged otherwise). Raises Superseded when it lies off the
    chain, and the `StorageError`s, after which the same call may be repeated.
    """
    began = time.monotonic()
    header, _ = slot.read()
    done = _existing(catalog, header, began)
    if done is not None:
        return done
    write_rank(catalog, slot, rank=rank, world_size=world_size)
    return commit_step(
        catalog, header.generation, header.step, world_size=world_size, code_digest=code_digest, began=began
    )


def write_rank(catalog: Catalog, slot: Slot, *, rank: int, world_size: int) -> RankManifest:
    """Writes one rank's shards and its manifest. When this step's manifest of the rank is there already,
    whole, that one counts: whoever wrote it held a snapshot of the same step of the same generation.
    """
    header, meta = slot.read()
    generation, step = tuple_of(header.generation), header.step
    catalog.assert_admits(generation, step)
    existing = _read_rank(catalog, generation, step, rank)
    if existing is not None:
        catalog.storage.settle(catalog.rank_path(generation, step, rank))
        return existing[0]
    data = slot.view[HEADER_BYTES : HEADER_BYTES + header.data_bytes]
    pieces = cut(check_entries(meta["entries"], header.data_bytes), header.data_bytes)
    shards, tensors = [], []
    for number, piece in enumerate(pieces):
        tensors += _tensors(piece, number, data)
        shards.append(_write_shard(catalog, header, rank=rank, number=number, piece=piece, data=data))
    _assert_unchanged(slot, header)
    manifest = RankManifest(
        job=catalog.job_id,
        generation=format_generation(generation),
        step=step,
        rank=rank,
        world_size=world_size,
        kind=meta.get("kind", "state"),
        data_bytes=header.data_bytes,
        shards=tuple(shards),
        tensors=tuple(tensors),
        meta={key: value for key, value in meta.items() if key != "entries"},
    )
    try:
        catalog.storage.create(catalog.rank_path(generation, step, rank), encode(manifest))
    except AlreadyExists:
        winner = _read_rank(catalog, generation, step, rank)
        if winner is None:
            raise
        catalog.storage.settle(catalog.rank_path(generation, step, rank))
        return winner[0]
    return manifest


def commit_step(
    catalog: Catalog,
    generation: Generation,
    step: int,
    *,
    world_size: int,
    code_digest: str | None = None,
    began: float | None = None,
) -> Committed:
    """Writes the step's manifest, which is the commit; every rank's part must be there (NotFound
    otherwise).
    """
    began = time.monotonic() if began is None else began
    generation = tuple_of(generation)
    ranks, parts = [], []
    for rank in range(world_size):
        found = _read_rank(catalog, generation, step, rank)
        if found is None:
            raise NotFound(f"{catalog.rank_path(generation, step, rank)}: this rank has not written its part")
        part, data = found
        path = catalog.rank_path(generation, step, rank).removeprefix(f"{catalog.job_id}/")
        ranks.append(
            RankRecord(
                rank=rank, path=path, size_bytes=len(data), digest=digest_of(data), data_bytes=part.data_bytes
            )
        )
        parts.append(part)
    meta = parts[0].meta
    manifest = Manifest(
        job=catalog.job_id,
        generation=format_generation(generation),
        step=step,
        epoch=meta.get("epoch"),
        kind=parts[0].kind,
        world_size=world_size,
        created_us=time.time_ns() // 1000,
        size_bytes=_size(parts, ranks),
        metrics=meta.get("metrics"),
        code=code_digest,
        frameworks=meta.get("frameworks"),
        written_by=_version(),
        ranks=tuple(ranks),
    )
    # Looked at as late as possible: what a superseded generation commits lies off the chain all the same, but
    # then it learns here that it must end.
    catalog.assert_admits(generation, step)
    try:
        catalog.storage.create(catalog.manifest_path(generation, step), encode(manifest))
    except AlreadyExists:
        catalog.storage.settle(catalog.manifest_path(generation, step))
        winner = catalog.manifest(RestorePoint(generation, step))
        return Committed(generation, step, winner.size_bytes, time.monotonic() - began, already=True)
    return Committed(generation, step, manifest.size_bytes, time.monotonic() - began)


def _existing(catalog: Catalog, header: SlotHeader, began: float) -> Committed | None:
    generation = tuple_of(header.generation)
    catalog.assert_admits(generation, header.step)
    path = catalog.manifest_path(generation, header.step)
    if not catalog.storage.exists(path):
        return None
    catalog.storage.settle(path)
    manifest = catalog.manifest(RestorePoint(generation, header.step))
    return Committed(generation, header.step, manifest.size_bytes, time.monotonic() - began, already=True)


def _read_rank(
    catalog: Catalog, generation: Generation, step: int, rank: int
) -> tuple[RankManifest, bytes] | None:
    """A rank's manifest that is there already. One that does not read is somebody's damage, and said."""
    try:
        data = catalog.storage.read(catalog.rank_path(generation, step, rank), 0, MANIFEST_BYTES_MAX)
    except NotFound:
        return None
    return parse_rank(data, job=catalog.job_id, generation=generation, step=step, rank=rank), data


def _write_shard(
    catalog: Catalog, header: SlotHeader, *, rank: int, number: int, piece: Piece, data: memoryview
) -> ShardRecord:
    generation, step = tuple_of(header.generation), header.step
    described = {
        "format": "orch",
        "job": catalog.job_id,
        "generation": format_generation(generation),
        "step": str(step),
        "rank": str(rank),
    }
    head = shard_header(piece, described)
    body = data[piece.start : piece.end]
    for attempt in range(SHARD_NAMES_TRIES_MAX):
        # A name that is taken by an abandoned commit's other content is left to the sweep.
        path = catalog.shard_path(generation, step, rank, number + attempt * 1_000_000)
        try:
            catalog.storage.create(path, [head, body])
        except AlreadyExists:
            if attempt == SHARD_NAMES_TRIES_MAX - 1:
                raise
            continue
        return ShardRecord(
            path=path.removeprefix(f"{catalog.job_id}/"),
            size_bytes=len(head) + len(body),
            data_offset=len(head),
            header_digest=digest_of(head),
        )
    raise AssertionError("unreachable")


def _tensors(piece: Piece, number: int, data: memoryview) -> list[TensorRecord]:
    return [
        TensorRecord(
            name=entry["name"],
            dtype=entry["dtype"],
            shape=tuple(entry["shape"]),
            global_shape=tuple(entry.get("global_shape", entry["shape"])),
            offsets=tuple(entry.get("offsets", [0] * len(entry["shape"]))),
            shard=number,
            start=entry["offset"] - piece.start,
            size_bytes=entry["size_bytes"],
            digests=digests_of(data[entry["offset"] : entry["offset"] + entry["size_bytes"]]),
        )
        for entry in piece.entries
    ]


def _assert_unchanged(slot: Slot, header: SlotHeader) -> None:
    if slot.header() != header or header.state != READY:
        raise SnapshotChanged(f"{slot.path} was given away while step {header.step} was being written")


def _size(parts: list[RankManifest], ranks: list[RankRecord]) -> int:
    return sum(s.size_bytes for part in parts for s in part.shards) + sum(r.size_bytes for r in ranks)


def _version() -> str:
    try:
        return f"orch {metadata.version('orch')}"
    except metadata.PackageNotFoundError:
        return "orch"
