"""Is a checkpoint in storage what was committed? Nothing is changed here; marking is the caller's decision."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

from orch_workers.checkpoint import blobs
from orch_workers.checkpoint.content import Content, header_problem, shard_problems, stream
from orch_workers.checkpoint.errors import Damaged

if TYPE_CHECKING:
    from orch_workers.checkpoint.catalog import Catalog, RestorePoint
    from orch_workers.checkpoint.content import Moved

PROBLEMS_MAX = 20
"""More of one checkpoint are counted, not listed."""


class Verified(NamedTuple):
    """What was found. `problems` empty: as far as was looked, it is what was committed."""

    point: RestorePoint
    deep: bool
    problems: tuple[str, ...]
    more_problems: int
    tensors: int
    size_bytes: int
    """Of the checkpoint in storage."""
    read_bytes: int
    """Of tensors, compared with their digests."""
    seconds_s: float
    files: int = 0
    """Files that the job's own code wrote."""
    needs_version: int | None = None
    """Nothing is known to be damaged: a newer orch wrote it, in this version of the format."""

    @property
    def step(self) -> int:
        return self.point.step

    @property
    def is_good(self) -> bool:
        return not self.problems


def verify(
    catalog: Catalog, point: RestorePoint, *, deep: bool = False, moved: Moved | None = None
) -> Verified:
    """Quick: the manifests read and agree, and every object is there with its size. Deep: every byte of every
    tensor matches its digest. A StorageError is no finding: nothing is known then.
    """
    began = time.monotonic()
    try:
        content = Content.open(catalog, point)
    except Damaged as error:
        seconds_s = time.monotonic() - began
        return Verified(point, deep, (str(error),), 0, 0, 0, 0, seconds_s, needs_version=error.needs_version)
    refs = content.refs()
    gone = shard_problems(content)
    problems = list(gone.values())
    read_bytes = 0
    if deep:
        readable = [(rank, shard) for rank, shard in content.shards() if shard.path not in gone]
        problems += [found for _, shard in readable if (found := header_problem(content, shard))]
        paths = {catalog.path(shard.path) for _, shard in readable}
        # What several ranks have alike lies in one place, and is read once.
        # What is empty begins where something else does, and has nothing to be read.
        filled = [ref for ref in refs if ref.path in paths and ref.record.size_bytes]
        wanted = {(ref.path, ref.file_start): ref for ref in filled}.values()
        for part in stream(content.catalog, wanted, damaged=problems.append):
            read_bytes += len(part.data)
            if moved is not None:
                moved(len(part.data))
    files = sum(len(part.files) for part in content.ranks)
    if files:
        of_files, compared_bytes = blobs.problems(content, deep=deep, moved=moved)
        problems, read_bytes = problems + of_files, read_bytes + compared_bytes
    return Verified(
        point,
        deep,
        tuple(problems[:PROBLEMS_MAX]),
        max(0, len(problems) - PROBLEMS_MAX),
        len(refs),
        content.manifest.size_bytes,
        read_bytes,
        time.monotonic() - began,
        files=files,
    )
