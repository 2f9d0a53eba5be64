"""From the shards of one rank into memory, every byte checked on the way.

The unit is a row of digest chunks: a worker reads it, hashes it while it is still in the processor's cache, and
reads again what does not match, while other workers wait for the disk or the network. A thread of its own runs
ahead and makes the kernel map the memory: a fault for every page costs more than reading it.
"""

from __future__ import annotations

import ctypes
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

from orch_workers.checkpoint import format as checkpoint_format
from orch_workers.checkpoint.direct import address_of
from orch_workers.checkpoint.errors import Damaged, NotFound, StorageUnavailable
from orch_workers.checkpoint.format import RankManifest, ShardRecord, digest_of
from orch_workers.checkpoint.rereading import Doubt

if TYPE_CHECKING:
    from collections.abc import Iterator

    from orch_workers.checkpoint.catalog import Catalog

READ_BYTES = 16 << 20
"""Asked for at a time."""
POPULATE_BYTES = 8 << 20
_PAGE_BYTES = 4096
_MADV_POPULATE_WRITE = 23
"""Linux 5.14; older kernels refuse, and the pages are mapped as they are first touched."""


class Chunk(NamedTuple):
    """The bytes [start, end) of a shard's data region that one digest is of."""

    start: int
    end: int
    digest: str
    tensor: str


def fill(catalog: Catalog, part: RankManifest, view: memoryview) -> None:
    """Reads all shards of a rank into `view`, the data region of a slot.

    Raises Damaged when bytes do not match their digest however often they are read, and StorageUnavailable.
    """
    stop = threading.Event()
    ahead = threading.Thread(target=_populate, args=(view, stop), name="populate", daemon=True)
    ahead.start()
    pool = ThreadPoolExecutor(catalog.storage.reads_at_once, thread_name_prefix="restore")
    try:
        done, base = [], 0
        for shard, chunks in zip(part.shards, _chunks(part), strict=True):
            length = shard.size_bytes - shard.data_offset
            stretch, base = view[base : base + length], base + length
            path = catalog.path(shard.path)
            done.append(pool.submit(_check_header, catalog, path, shard))
            done += [pool.submit(_fill_unit, catalog, path, shard, unit, stretch) for unit in _units(chunks)]
        for one in done:
            one.result()
    finally:
        # Nothing may touch the memory after this: the caller unmaps it.
        pool.shutdown(cancel_futures=True)
        stop.set()
        ahead.join()


def _chunks(part: RankManifest) -> list[list[Chunk]]:
    """By shard, in the order of their places."""
    size_bytes = checkpoint_format.DIGEST_CHUNK_BYTES
    found: list[list[Chunk]] = [[] for _ in part.shards]
    for tensor in part.tensors:
        end = tensor.start + tensor.size_bytes
        starts = range(tensor.start, end, size_bytes)
        found[tensor.shard] += [
            Chunk(start, min(start + size_bytes, end), digest, tensor.name)
            for start, digest in zip(starts, tensor.digests, strict=True)
        ]
    for chunks in found:
        chunks.sort()
    return found


def _units(chunks: list[Chunk]) -> Iterator[list[Chunk]]:
    """Rows of chunks of about READ_BYTES, with the gaps between them."""
    unit: list[Chunk] = []
    for chunk in chunks:
        if unit and chunk.end - unit[0].start > READ_BYTES:
            yield unit
            unit = []
        unit.append(chunk)
    if unit:
        yield unit


def _fill_unit(
    catalog: Catalog, path: str, shard: ShardRecord, unit: list[Chunk], stretch: memoryview
) -> None:
    first = unit[0].start
    _read_exactly(catalog, path, shard.data_offset + first, stretch[first : unit[-1].end])
    for chunk in unit:
        if digest_of(stretch[chunk.start : chunk.end]) != chunk.digest:
            _read_again(catalog, path, shard, chunk, stretch[chunk.start : chunk.end])


def _read_again(catalog: Catalog, path: str, shard: ShardRecord, chunk: Chunk, view: memoryview) -> None:
    place = shard.data_offset + chunk.start
    doubt = Doubt(path)
    while digest_of(view) != chunk.digest:
        if doubt.is_settled(view):
            raise Damaged(
                f"{path}: tensor {chunk.tensor!r}, the bytes from {place} on do not match their digest"
            )
        _read_exactly(catalog, path, place, view)


def _read_exactly(catalog: Catalog, path: str, start: int, view: memoryview) -> None:
    """Fills `view`. That the shard is as long as it should be is known: an answer that is shorter was cut."""
    doubt = Doubt(path)
    while True:
        try:
            if catalog.storage.read_into(path, start, view) == len(view):
                return
        except NotFound as error:
            if doubt.is_settled("missing"):
                raise Damaged(f"{path} is missing") from error
        except StorageUnavailable:
            # One answer cut short is no reason to read the whole checkpoint again.
            if doubt.is_settled("away"):
                raise
        else:
            doubt.is_settled(None)


def _check_header(catalog: Catalog, path: str, shard: ShardRecord) -> None:
    head = memoryview(bytearray(shard.data_offset))
    doubt = Doubt(path)
    while True:
        _read_exactly(catalog, path, 0, head)
        if digest_of(head) == shard.header_digest:
            return
        if doubt.is_settled(head):
            raise Damaged(f"{path}: its header does not match its digest")


def _populate(view: memoryview, stop: threading.Event) -> None:
    """Maps the pages of `view` for writing, from the front on. Only ever a help: errors end it."""
    if not len(view):
        return
    # By ctypes, because mmap.madvise would keep every other thread of the interpreter waiting meanwhile.
    madvise = ctypes.CDLL(None, use_errno=True).madvise
    begin = address_of(view)
    end = begin + len(view)
    begin -= begin % _PAGE_BYTES
    for at in range(begin, end, POPULATE_BYTES):
        length = min(POPULATE_BYTES, end - at)
        if stop.is_set() or madvise(ctypes.c_void_p(at), ctypes.c_size_t(length), _MADV_POPULATE_WRITE):
            return
