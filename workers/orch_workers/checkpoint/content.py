"""One checkpoint, opened for looking at: its manifests, and its tensors' bytes, checked on the way.

What verify, diff and export stand on. Bytes come as parts of bounded size, in the order in which they lie in
storage, so that neither many small tensors nor one of a hundred gigabytes costs more memory than a few reads.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from orch_workers.checkpoint.errors import Damaged, NotFound, StorageUnavailable
from orch_workers.checkpoint.format import (
    DIGEST_CHUNK_BYTES,
    Manifest,
    RankManifest,
    ShardRecord,
    TensorRecord,
    digest_of,
)
from orch_workers.checkpoint.sharing import check_same, check_shared

if TYPE_CHECKING:
    from orch_workers.checkpoint.catalog import Catalog, RestorePoint

SEGMENT_BYTES = 32 << 20
"""Asked for at a time: several small tensors, or some chunks of a large one."""
SEGMENTS_AT_ONCE = 4
GAP_BYTES_MAX = 1 << 20
"""Bytes between two wanted tensors that are rather read than skipped with another request."""
READ_TRIES_MAX = 3
"""How often bytes that do not match their digest are read before they are called damaged."""

Moved = Callable[[int], None]
"""Told how many bytes were dealt with since it was told last."""


@dataclass(frozen=True, eq=False)
class Ref:
    """One rank's piece of one tensor, and where its bytes lie. Compared by identity: its digests may be thousands."""

    rank: int
    record: TensorRecord
    path: str
    file_start: int

    @property
    def label(self) -> str:
        return self.record.name if self.rank == 0 else f"{self.record.name} (rank {self.rank})"

    @property
    def is_whole(self) -> bool:
        return self.record.shape == self.record.global_shape


class Part(NamedTuple):
    """Some of a tensor's bytes, from `start` on; they matched their digests."""

    ref: Ref
    start: int
    data: memoryview


@dataclass(frozen=True)
class Content:
    """The manifests of one checkpoint, read and checked against each other."""

    catalog: Catalog
    point: RestorePoint
    manifest: Manifest
    ranks: tuple[RankManifest, ...]

    @classmethod
    def open(cls, catalog: Catalog, point: RestorePoint) -> Content:
        """Damaged when a manifest is missing or is not what was committed."""
        manifest = catalog.manifest(point)
        parts = [catalog.rank_manifest(point, manifest, rank) for rank in range(manifest.world_size)]
        check_shared(parts)
        return cls(catalog, point, manifest, tuple(parts))

    def refs(self) -> list[Ref]:
        """All tensors of all ranks, each rank's in the order in which they were saved. What several ranks have alike
        is among each one's, and lies in one place.
        """
        known = {part.rank: refs_of(self.catalog, part) for part in self.ranks}
        return [ref for part in self.ranks for ref in [*known[part.rank].values(), *shared_refs(part, known)]]

    def tree(self, rank: int = 0) -> dict[str, Any]:
        """The typed tree of a rank; an empty one if there is none. Of files: what each of them is."""
        if files := self.ranks[rank].files:
            return {"files": {file.path: file.described for file in files}}
        found = self.ranks[rank].meta.get("tree")
        return found if isinstance(found, dict) else {}

    def shards(self) -> list[tuple[int, ShardRecord]]:
        """With their rank."""
        return [(part.rank, shard) for part in self.ranks for shard in part.shards]


def refs_of(catalog: Catalog, part: RankManifest) -> dict[str, Ref]:
    """By name, of what a rank has written."""
    return {
        tensor.name: Ref(part.rank, tensor, catalog.path(shard.path), shard.data_offset + tensor.start)
        for tensor in part.tensors
        for shard in (part.shards[tensor.shard],)
    }


def shared_refs(part: RankManifest, known: Mapping[int, Mapping[str, Ref]]) -> Iterator[Ref]:
    """Of what others have written for a rank; `known`: theirs, by rank. Damaged when one has not."""
    for shared in part.shared:
        found = known.get(shared.rank, {}).get(shared.name)
        check_same(shared, None if found is None else found.record)
        assert found is not None
        yield Ref(part.rank, found.record, found.path, found.file_start)


def shard_problems(content: Content) -> dict[str, str]:
    """Shards that are missing, have another size, or lie elsewhere, by their path below the job, each with the
    sentence; found with one list of their folder.
    """
    catalog, point = content.catalog, content.point
    folder = catalog.shards_folder(point.generation, point.step)
    stored = {entry.path: entry.size_bytes for entry in catalog.storage.list(folder)}
    problems = {}
    for rank, shard in content.shards():
        path = catalog.path(shard.path)
        if not path.startswith(f"{folder}/{rank}-"):
            problems[shard.path] = f"rank manifest: {shard.path!r} is no shard of this checkpoint"
        elif stored.get(path) != shard.size_bytes:  # a list may be behind what is there
            problem = _size_problem(catalog, path, shard)
            problems.update({shard.path: problem} if problem else {})
    return problems


def _size_problem(catalog: Catalog, path: str, shard: ShardRecord) -> str | None:
    try:
        size_bytes = catalog.storage.size(path)
    except NotFound:
        return f"{shard.path} is missing"
    if size_bytes != shard.size_bytes:
        return f"{shard.path} has {size_bytes} bytes instead of {shard.size_bytes}"
    return None


def header_problem(content: Content, shard: ShardRecord) -> str | None:
    """Whether the bytes before a shard's data are those that were committed."""
    path = content.catalog.path(shard.path)
    for _ in range(READ_TRIES_MAX):
        if digest_of(content.catalog.storage.read(path, 0, shard.data_offset)) == shard.header_digest:
            return None
    return f"{shard.path}: its header does not match its digest"


class _Unit(NamedTuple):
    """What one digest is of: up to 8 MiB of a tensor."""

    ref: Ref
    number: int

    @property
    def start(self) -> int:
        return self.number * DIGEST_CHUNK_BYTES

    @property
    def size_bytes(self) -> int:
        return min(DIGEST_CHUNK_BYTES, self.ref.record.size_bytes - self.start)

    @property
    def file_start(self) -> int:
        return self.ref.file_start + self.start


class _Segment(NamedTuple):
    """What is read with one request."""

    path: str
    start: int
    end: int
    units: tuple[_Unit, ...]


def stream(
    catalog: Catalog,
    refs: Iterable[Ref],
    *,
    only: Callable[[Ref, int], bool] | None = None,
    damaged: Callable[[str], None] | None = None,
) -> Iterator[Part]:
    """The bytes of `refs` in the order of storage, each part checked against its digest.

    `only(ref, number)` picks among a tensor's chunks of 8 MiB. Damaged is raised for what does not match,
    or `damaged` is told the sentence and the part left out.
    """
    units = sorted(
        (
            _Unit(ref, number)
            for ref in refs
            for number in range(len(ref.record.digests))
            if only is None or only(ref, number)
        ),
        key=lambda unit: (unit.ref.path, unit.file_start),
    )
    waiting: deque[Future[tuple[list[Part], list[str]]]] = deque()
    pool = ThreadPoolExecutor(SEGMENTS_AT_ONCE, thread_name_prefix="read")
    try:
        for segment in _segments(units):
            waiting.append(pool.submit(_read_segment, catalog, segment))
            if len(waiting) > SEGMENTS_AT_ONCE:
                yield from _checked(waiting.popleft(), damaged)
        while waiting:
            yield from _checked(waiting.popleft(), damaged)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _checked(read: Future[tuple[list[Part], list[str]]], damaged: Callable[[str], None] | None) -> list[Part]:
    parts, problems = read.result()
    for problem in problems:
        if damaged is None:
            raise Damaged(problem)
        damaged(problem)
    return parts


def _segments(units: Iterable[_Unit]) -> Iterator[_Segment]:
    pending: list[_Unit] = []
    for unit in units:
        if pending and not _fits(pending, unit):
            yield _segment(pending)
            pending = []
        pending.append(unit)
    if pending:
        yield _segment(pending)


def _fits(pending: list[_Unit], unit: _Unit) -> bool:
    last = pending[-1]
    gap = unit.file_start - (last.file_start + last.size_bytes)
    end = unit.file_start + unit.size_bytes
    return (
        unit.ref.path == last.ref.path
        and gap <= GAP_BYTES_MAX
        and end - pending[0].file_start <= SEGMENT_BYTES
    )


def _segment(units: list[_Unit]) -> _Segment:
    first, last = units[0], units[-1]
    return _Segment(first.ref.path, first.file_start, last.file_start + last.size_bytes, tuple(units))


def _read_segment(catalog: Catalog, segment: _Segment) -> tuple[list[Part], list[str]]:
    """The parts that match their digests, and a sentence for each of the others."""
    whole = memoryview(bytearray(segment.end - segment.start))
    parts: list[Part] = []
    problems: list[str] = []
    try:
        read_exactly(catalog, segment.path, segment.start, whole)
    except Damaged as error:
        return parts, [str(error)]
    for unit in segment.units:
        at = unit.file_start - segment.start
        data = whole[at : at + unit.size_bytes]
        if matches(catalog, segment.path, unit.file_start, data, unit.ref.record.digests[unit.number]):
            parts.append(Part(unit.ref, unit.start, data))
        else:
            problems.append(
                f"{segment.path}: tensor {unit.ref.record.name!r}, the bytes from {unit.file_start} on do not "
                f"match their digest"
            )
    return parts, problems


def matches(catalog: Catalog, path: str, start: int, data: memoryview, digest: str) -> bool:
    """Whether `data`, which was read from there, is what was committed; read again if it is not."""
    for _ in range(READ_TRIES_MAX - 1):
        if digest_of(data) == digest:
            return True
        read_exactly(catalog, path, start, data)
    return digest_of(data) == digest


def read_exactly(catalog: Catalog, path: str, start: int, view: memoryview) -> None:
    """Fills `view`; Damaged when the object is gone or ends before."""
    away: StorageUnavailable | None = None
    for _ in range(READ_TRIES_MAX):
        try:
            if catalog.storage.read_into(path, start, view) == len(view):
                return
            away = None
        except NotFound as error:
            raise Damaged(f"{path} is missing") from error
        except StorageUnavailable as error:
            away = error  # one answer cut short is no reason to begin anew
    if away is not None:
        raise away
    raise Damaged(f"{path} ends before byte {start + len(view)}")
