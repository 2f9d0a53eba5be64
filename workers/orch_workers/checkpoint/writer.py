"""From a snapshot in shared memory to a checkpoint in storage.

Shards first, then the rank's manifest, then the step's: each create-only, each repeatable. A crash anywhere
leaves parts without a manifest, which do not exist; the same commit may simply be tried again, by whoever
holds the snapshot.
"""

from __future__ import annotations

import math
import secrets
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from typing import Any, NamedTuple

from orch_workers.checkpoint.catalog import Catalog, RestorePoint
from orch_workers.checkpoint.chain import Generation, strict_generation, tuple_of
from orch_workers.checkpoint.direct import phase_of
from orch_workers.checkpoint.errors import AlreadyExists, Damaged, NotFound, SnapshotChanged
from orch_workers.checkpoint.format import (
    FORMAT_VERSION,
    MANIFEST_BYTES_MAX,
    VERSION_READ_MAX,
    Manifest,
    RankManifest,
    RankRecord,
    ShardRecord,
    digest_of,
    encode,
    encode_rank,
    parse_rank,
)
from orch_workers.checkpoint.layout import Digests, Layout, Share, layout_of
from orch_workers.checkpoint.sharing import Agreement, check_shared, rows_of
from orch_workers.training.slots import HEADER_BYTES, READY, Slot, SlotHeader, format_generation

SHARD_NAMES_TRIES_MAX = 16
"""Other names tried for a shard when an abandoned commit of the same step has left something else there."""

SHARD_NUMBERS = 1 << 53
"""Numbers that a program in any language reads as they are."""


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
    blocked_s: float | None = None,
) -> Committed:
    """Commits the READY snapshot in `slot`, of the generation and step that its header names.

    For a gang of one; with more ranks each calls `write_rank`, and when all have, the leader `commit_step`.
    `blocked_s`: how long training waited for the snapshot, as far as that is known.
    The slot must stay untouched meanwhile (SnapshotChanged otherwise). Raises Superseded when it lies off the
    chain, and the `StorageError`s, after which the same call may be repeated.
    """
    began = time.monotonic()
    header, meta = slot.read()
    done = _existing(catalog, header, began)
    if done is not None:
        return done
    part = _write_part(catalog, slot, header, meta, rank=rank, world_size=world_size)
    return _commit_parts(
        catalog,
        header.generation,
        header.step,
        {rank: part},
        world_size=world_size,
        code_digest=code_digest,
        blocked_s=blocked_s,
        began=began,
    )


def write_rank(
    catalog: Catalog, slot: Slot, *, rank: int, world_size: int, agreement: Agreement | None = None
) -> RankRecord:
    """Writes one rank's shards and its manifest. When this step's manifest of the rank is there already,
    whole, that one counts: whoever wrote it held a snapshot of the same step of the same generation.

    `agreement`: with the other ranks, so that what is the same on several is written once.
    """
    header, meta = slot.read()
    catalog.assert_admits(tuple_of(header.generation), header.step)
    return _write_part(
        catalog, slot, header, meta, rank=rank, world_size=world_size, agreement=agreement
    ).record


class _Part(NamedTuple):
    """What the step's manifest says of one rank, and takes from it."""

    record: RankRecord
    manifest: RankManifest
    stored_bytes: int
    """Of its shards and files."""


def _write_part(
    catalog: Catalog,
    slot: Slot,
    header: SlotHeader,
    meta: dict[str, Any],
    *,
    rank: int,
    world_size: int,
    agreement: Agreement | None = None,
) -> _Part:
    generation, step = tuple_of(header.generation), header.step
    path = catalog.rank_path(generation, step, rank)
    data = slot.view[HEADER_BYTES : HEADER_BYTES + header.data_bytes]
    digests: Digests | None = None
    if agreement is not None:
        # Also where this rank's part is there already: another one may be waiting to compare.
        rows, digests = rows_of(meta["entries"], data)
        agreement.offer(rows)
    existing = _read_part(catalog, generation, step, rank)
    if existing is not None:
        catalog.storage.settle(path)
        return existing
    owners = None if agreement is None else agreement.owners()
    share = None if owners is None else Share(rank, owners)
    layout = layout_of(meta["entries"], header.data_bytes, catalog.storage.shard_bytes, share)
    shards, tensors = _write_shards(catalog, header, rank, layout, data, digests)
    shared = [] if digests is None else layout.shared(digests)
    _assert_unchanged(slot, header)
    manifest = RankManifest(
        version=VERSION_READ_MAX if shared else FORMAT_VERSION,
        job=catalog.job_id,
        generation=format_generation(generation),
        step=step,
        rank=rank,
        world_size=world_size,
        kind=meta.get("kind", "state"),
        data_bytes=layout.data_bytes,
        shards=tuple(shards),
        tensors=(),
        meta={key: value for key, value in meta.items() if key != "entries"},
    )
    encoded = encode_rank(manifest, tensors, shared)
    try:
        catalog.storage.create(path, encoded)
    except AlreadyExists:
        winner = _read_part(catalog, generation, step, rank)
        if winner is None:
            raise
        catalog.storage.settle(path)
        return winner
    return _part(catalog, manifest, encoded)


def commit_step(
    catalog: Catalog,
    generation: Generation,
    step: int,
    *,
    world_size: int,
    code_digest: str | None = None,
    blocked_s: float | None = None,
) -> Committed:
    """Writes the step's manifest, which is the commit; every rank's part must be there (NotFound
    otherwise).
    """
    began = time.monotonic()
    return _commit_parts(
        catalog,
        generation,
        step,
        {},
        world_size=world_size,
        code_digest=code_digest,
        blocked_s=blocked_s,
        began=began,
    )


def _commit_parts(
    catalog: Catalog,
    generation: Generation,
    step: int,
    own: dict[int, _Part],
    *,
    world_size: int,
    code_digest: str | None,
    blocked_s: float | None,
    began: float,
) -> Committed:
    """`own`: parts that the caller has written itself and need not be read back."""
    generation = tuple_of(generation)
    parts: list[_Part] = []
    for rank in range(world_size):
        part = own.get(rank) or _read_part(catalog, generation, step, rank)
        if part is None:
            raise NotFound(f"{catalog.rank_path(generation, step, rank)}: this rank has not written its part")
        if part.manifest.world_size != world_size:
            raise Damaged(
                f"{catalog.rank_path(generation, step, rank)}: a part of {part.manifest.world_size} ranks' step"
            )
        parts.append(part)
    check_shared([part.manifest for part in parts])
    meta = parts[0].manifest.meta
    manifest = Manifest(
        job=catalog.job_id,
        generation=format_generation(generation),
        step=step,
        epoch=meta.get("epoch"),
        kind=parts[0].manifest.kind,
        world_size=world_size,
        created_us=time.time_ns() // 1000,
        size_bytes=sum(part.stored_bytes + part.record.size_bytes for part in parts),
        metrics=meta.get("metrics"),
        code=code_digest,
        frameworks=meta.get("frameworks"),
        written_by=_version(),
        took_s=round(time.monotonic() - began, 6),
        blocked_s=_seconds(blocked_s),
        ranks=tuple(part.record for part in parts),
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


def _read_part(catalog: Catalog, generation: Generation, step: int, rank: int) -> _Part | None:
    """A rank's part that is there already. A manifest that does not read is somebody's damage, and said."""
    try:
        data = catalog.storage.read(catalog.rank_path(generation, step, rank), 0, MANIFEST_BYTES_MAX)
    except NotFound:
        return None
    manifest = parse_rank(data, job=catalog.job_id, generation=generation, step=step, rank=rank)
    return _part(catalog, manifest, data)


def _part(catalog: Catalog, manifest: RankManifest, data: bytes) -> _Part:
    path = catalog.rank_path(strict_generation(manifest.generation), manifest.step, manifest.rank)
    record = RankRecord(
        rank=manifest.rank,
        path=path.removeprefix(f"{catalog.job_id}/"),
        size_bytes=len(data),
        digest=digest_of(data),
        data_bytes=manifest.data_bytes,
    )
    data_bytes = sum(shard.size_bytes for shard in manifest.shards) + sum(
        f.size_bytes for f in manifest.files
    )
    return _Part(record, manifest, data_bytes)


def _write_shards(
    catalog: Catalog,
    header: SlotHeader,
    rank: int,
    layout: Layout,
    data: memoryview,
    digests: Digests | None,
) -> tuple[list[ShardRecord], list[str]]:
    """Writes the shards, some at once, and returns their records and those of their tensors.

    Digests that are not known yet are taken while the bytes are on their way: nothing waits for the other.
    """
    at_once = catalog.storage.writes_at_once + 1
    with ThreadPoolExecutor(at_once, thread_name_prefix="shards") as pool:
        shards, tensors = [], []
        for number in range(len(layout.pieces)):
            shards.append(pool.submit(_write_shard, catalog, header, rank, layout, number, data))
            tensors.append(pool.submit(layout.tensors, number, data, digests))
        try:
            records = [future.result() for future in tensors]
            return [future.result() for future in shards], [text for text in records if text]
        except BaseException:
            # The caller gives the slot away after this: what has begun is waited for, the rest never begins.
            pool.shutdown(cancel_futures=True)
            raise


def _write_shard(
    catalog: Catalog, header: SlotHeader, rank: int, layout: Layout, number: int, data: memoryview
) -> ShardRecord:
    generation, step = tuple_of(header.generation), header.step
    described = {
        "format": "orch",
        "job": catalog.job_id,
        "generation": format_generation(generation),
        "step": str(step),
        "rank": str(rank),
    }
    body = layout.body(number, data)
    head = layout.header(number, described, phase_of(body[0]) if body else 0)
    size_bytes = len(head) + sum(map(len, body))
    if size_bytes > catalog.storage.fenced_bytes_max:
        number = secrets.randbelow(SHARD_NUMBERS)
    for attempt in range(SHARD_NAMES_TRIES_MAX):
        # A name that is taken by an abandoned commit's other content is left to the sweep.
        path = catalog.shard_path(generation, step, rank, number + attempt * 1_000_000)
        try:
            catalog.storage.create(path, [head, *body])
        except AlreadyExists:
            if attempt == SHARD_NAMES_TRIES_MAX - 1:
                raise
            continue
        return ShardRecord(
            path=path.removeprefix(f"{catalog.job_id}/"),
            size_bytes=size_bytes,
            data_offset=len(head),
            header_digest=digest_of(head),
        )
    raise AssertionError("unreachable")


def _assert_unchanged(slot: Slot, header: SlotHeader) -> None:
    if slot.header() != header or header.state != READY:
        raise SnapshotChanged(f"{slot.path} was given away while step {header.step} was being written")


def _seconds(told: object) -> float | None:
    """What a training process has told of itself must not keep its state from being committed."""
    if isinstance(told, (int, float)) and 0 <= told < math.inf:
        return round(float(told), 6)
    return None


def _version() -> str:
    try:
        return f"orch {metadata.version('orch')}"
    except metadata.PackageNotFoundError:
        return "orch"
