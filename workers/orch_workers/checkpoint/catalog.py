"""A job's checkpoints in storage: which exist, which may be restored, and which may go.

Names below `<prefix>/<job>/` are those of DESIGN section 6, and `quarantine/G/S.json` and `pins/G/S.json`
beside them. All of it is create-only; nothing is ever overwritten, so there is no "latest" pointer that could lie.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from orch_workers.checkpoint import blobs, sweeping
from orch_workers.checkpoint.chain import Chain, Generation, strict_generation, tuple_of
from orch_workers.checkpoint.errors import (
    AlreadyExists,
    CheckpointError,
    Damaged,
    NotFound,
    Superseded,
    WrittenByNewer,
)
from orch_workers.checkpoint.format import (
    FORMAT_VERSION,
    MANIFEST_BYTES_MAX,
    Manifest,
    RankManifest,
    digest_of,
    parse_manifest,
    parse_rank,
    shown,
)
from orch_workers.checkpoint.records import (
    GENERATION_BYTES_MAX,
    MARK_BYTES_MAX,
    generation_record,
    is_void,
    parse_generation_record,
    quarantine_mark,
    reason_of,
)
from orch_workers.checkpoint.rereading import read_surely
from orch_workers.checkpoint.retaining import Retained, Retainer
from orch_workers.training.slots import format_generation

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from orch_policies import retention
    from orch_workers.checkpoint.storage import Entry, Storage

PIN_NOTE_CHARS_MAX = 1000
TEMPORARY_AGE_S = 3600.0
"""A temporary file older than this has no writer any more."""

_PARTS = ("ranks", "shards")
_JOB = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")


class RestorePoint(NamedTuple):
    """A committed checkpoint; `committed_us` is the storage's clock, only for showing."""

    generation: Generation
    step: int
    committed_us: int = 0

    def __str__(self) -> str:
        return f"{format_generation(self.generation)} step {self.step}"


class Catalog:
    """The checkpoints of one job. Thread-safe as far as its storage is; holds no state of its own."""

    def __init__(self, storage: Storage, job_id: str) -> None:
        if not _JOB.fullmatch(job_id):
            raise ValueError(f"{job_id!r} is no job id")
        self.storage = storage
        self.job_id = job_id
        self.blobs_named: dict[tuple[Generation, int], frozenset[str]] = {}
        """What was read of checkpoints of files: manifests never change, so none is read twice (blobs.py)."""

    # names

    def path(self, *parts: str) -> str:
        return "/".join((self.job_id, *parts))

    def generation_path(self, generation: Generation) -> str:
        return self.path("generations", f"{format_generation(generation)}.json")

    def manifest_path(self, generation: Generation, step: int) -> str:
        return self.path("manifests", *_place(generation, step)) + ".json"

    def quarantine_path(self, generation: Generation, step: int) -> str:
        return self.path("quarantine", *_place(generation, step)) + ".json"

    def pin_path(self, generation: Generation, step: int) -> str:
        return self.path("pins", *_place(generation, step)) + ".json"

    def rank_path(self, generation: Generation, step: int, rank: int) -> str:
        return self.path("ranks", *_place(generation, step), f"{rank}.json")

    def shards_folder(self, generation: Generation, step: int) -> str:
        return self.path("shards", *_place(generation, step))

    def shard_path(self, generation: Generation, step: int, rank: int, number: int) -> str:
        return f"{self.shards_folder(generation, step)}/{rank}-{number}.safetensors"

    # generations and the chain

    def generations(self) -> list[Generation]:
        """All that ever began here, oldest first."""
        found = []
        for entry in self.storage.list(self.path("generations")):
            name = entry.path.rsplit("/", 1)[1]
            if name.endswith(".json"):
                found.append(_generation_in(entry.path, name.removesuffix(".json")))
        return sorted(found)

    def newest_generation(self) -> Generation | None:
        known = self.generations()
        return known[-1] if known else None

    def chain(self) -> Chain | None:
        """The chain of the newest generation; None when none ever began.

        When its record is damaged and it has committed something, the chain is what it committed itself: that
        lies on it whatever it started from. Damaged when it has not: nothing tells then what may be restored.
        """
        newest = self.newest_generation()
        if newest is None:
            return None
        try:
            return self.chain_of(newest)
        except WrittenByNewer:
            raise
        except Damaged as error:
            if not any(generation == newest for _, (generation, _) in self.places("manifests")):
                raise
            damage = f"{error}; only what this generation committed itself can be restored"
            return replace(Chain.root(newest), damage=damage)

    def chain_of(self, generation: Generation) -> Chain:
        path = self.generation_path(generation)

        def parse(data: bytes) -> Chain:
            return parse_generation_record(data, path, job=self.job_id, generation=generation)

        return read_surely(self.storage, path, GENERATION_BYTES_MAX, parse)

    def begin(self, chain: Chain) -> Chain:
        """Writes down a generation and its ancestry; before its first commit. Repeatable.

        Raises Superseded when a newer generation has begun, or when this one has, differently.
        """
        generation = chain.generation
        data = generation_record(chain, self.job_id)
        try:
            self.storage.create(self.generation_path(generation), data)
        except AlreadyExists as error:
            # The same in other words is the same: another version of orch may have written it.
            if self.chain_of(generation) != chain:
                raise Superseded(
                    f"generation {format_generation(generation)} of {self.job_id} has begun already, from "
                    f"another state"
                ) from error
            self.storage.settle(self.generation_path(generation))
        self._assert_newest(generation)
        return chain

    def begin_generation(
        self, generation: Generation, parent: Generation | None = None, restored_step: int = 0
    ) -> Chain:
        """`begin` with the parent's ancestry looked up in storage. `parent` None: it starts from nothing."""
        generation = tuple_of(generation)
        known = self.generations()
        if generation in known:
            chain = self.chain_of(generation)
            if (chain.parent, chain.restored_step) != (parent and tuple_of(parent), restored_step):
                raise Superseded(f"generation {format_generation(generation)} began from another state")
            self.storage.settle(self.generation_path(generation))
            self._assert_newest(generation)
            return chain
        self._assert_newest(generation)
        if parent is None:
            return self.begin(Chain.root(generation))
        if not known:
            raise CheckpointError(
                f"{self.job_id} has no generation {format_generation(parent)} to descend from"
            )
        return self.begin(self.chain_of(known[-1]).fork(generation, parent, restored_step))

    def _assert_newest(self, generation: Generation) -> None:
        newest = self.newest_generation()
        if newest is not None and newest > generation:
            raise Superseded(
                f"generation {format_generation(generation)} of {self.job_id} is superseded "
                f"by {format_generation(newest)}"
            )

    def assert_admits(self, generation: Generation, step: int) -> None:
        """Superseded when a checkpoint of `generation` at `step` would lie off the newest generation's
        chain.
        """
        newest = self.newest_generation()
        if newest == generation:
            return
        if newest is None:
            raise CheckpointError(
                f"generation {format_generation(generation)} of {self.job_id} has not begun"
            )
        if not self.chain_of(newest).admits(generation, step):
            raise Superseded(
                f"step {step} of generation {format_generation(generation)} of {self.job_id} lies off "
                f"the chain "
                f"of {format_generation(newest)}"
            )

    # checkpoints

    def committed(self) -> list[RestorePoint]:
        """Every committed checkpoint, on the chain or not, quarantined or not; newest first."""
        return _newest_first(self._points("manifests"))

    def quarantined(self) -> dict[RestorePoint, str]:
        """Marked checkpoints with the reason."""
        reasons = {}
        for point in _newest_first(self._points("quarantine")):
            try:
                mark = self.storage.read(self.quarantine_path(*point[:2]), 0, MARK_BYTES_MAX)
            except NotFound:
                continue
            reasons[point] = reason_of(mark)
        return reasons

    def restore_points(self) -> list[RestorePoint]:
        """Committed, on the chain of the newest generation and not quarantined; newest first."""
        chain = self.chain()
        if chain is None:
            return []
        marked = {point[:2] for point in self._points("quarantine") if not self._is_void(point)}
        on_chain = [p for p in self._points("manifests") if chain.admits(p.generation, p.step)]
        return _newest_first(p for p in on_chain if p[:2] not in marked)

    def manifest(self, point: RestorePoint) -> Manifest:
        """Damaged when it is not what was committed."""
        path = self.manifest_path(point.generation, point.step)

        def parse(data: bytes) -> Manifest:
            return parse_manifest(data, job=self.job_id, generation=point.generation, step=point.step)

        return read_surely(self.storage, path, MANIFEST_BYTES_MAX, parse)

    def rank_manifest(self, point: RestorePoint, manifest: Manifest, rank: int) -> RankManifest:
        """The part of one rank, checked against the step's manifest. Damaged when it is not what was
        committed.
        """
        record = manifest.ranks[rank]
        path = self.rank_path(point.generation, point.step, rank)
        if record.path != path.removeprefix(f"{self.job_id}/"):
            raise Damaged(f"manifest: rank {rank} is said to be in {shown(record.path)!r}")

        def parse(data: bytes) -> RankManifest:
            if len(data) != record.size_bytes or digest_of(data) != record.digest:
                raise Damaged(
                    f"{path}: not the one that was committed ({len(data)} bytes for {record.size_bytes})"
                )
            return parse_rank(data, job=self.job_id, generation=point.generation, step=point.step, rank=rank)

        return read_surely(self.storage, path, min(record.size_bytes, MANIFEST_BYTES_MAX), parse)

    def _is_void(self, point: RestorePoint) -> bool:
        """A mark that an older orch set, because it could not read what this one can."""
        try:
            return is_void(self.storage.read(self.quarantine_path(*point[:2]), 0, MARK_BYTES_MAX))
        except NotFound:
            return False

    def quarantine(self, point: RestorePoint, reason: str, *, needs_version: int | None = None) -> None:
        """Marks a checkpoint as damaged: kept, reported, never restored. The first reason stays.

        `needs_version`: it is of this newer format, and the mark means nothing to an orch that reads it.
        """
        mark = quarantine_mark(reason, needs_version)
        with contextlib.suppress(AlreadyExists):
            self.storage.create(self.quarantine_path(point.generation, point.step), mark)

    def pins(self) -> dict[RestorePoint, str]:
        """Pinned checkpoints, newest first, each with its note. `committed_us` is when it was pinned: compare
        with other points by generation and step (`point[:2]`).
        """
        notes = {}
        for point in _newest_first(self._points("pins")):
            try:
                notes[point] = str(json.loads(self.storage.read(self.pin_path(*point[:2])))["note"])
            except (NotFound, ValueError, TypeError, KeyError):
                notes[point] = "its pin does not read"  # it is pinned all the same
        return notes

    def pinned(self) -> set[tuple[Generation, int]]:
        """The same without the notes, in one list."""
        return {point[:2] for point in self._points("pins")}

    def pin(self, point: RestorePoint, note: str = "") -> bool:
        """Keeps a committed checkpoint from being deleted, whatever the rules say. False: it is pinned already,
        and the first note stays. NotFound when there is no such checkpoint (any more).
        """
        document = {
            "version": FORMAT_VERSION,
            "note": note[:PIN_NOTE_CHARS_MAX],
            "pinned_us": time.time_ns() // 1000,
        }
        path, manifest = self.pin_path(*point[:2]), self.manifest_path(*point[:2])
        try:
            self.storage.create(path, json.dumps(document).encode())
            new = True
        except AlreadyExists:
            new = False
        # Looked at after the pin is there, as whoever deletes looks for a pin right before: what slips between
        # those two looks (milliseconds) is said here in all other cases.
        if not self.storage.exists(manifest):
            self.storage.delete(path)
            raise NotFound(f"{manifest}: there is no such checkpoint to pin")
        return new

    def unpin(self, point: RestorePoint) -> bool:
        """The rules decide about it again from now on. False: it was not pinned."""
        path = self.pin_path(*point[:2])
        if not self.storage.exists(path):
            return False
        self.storage.delete(path)
        return True

    def retain(self, rules: retention.Rules) -> Retained:
        """Removes the checkpoints on the chain that no rule asks for; manifest first, the rest after.

        Quarantined ones are kept for a person to look at, the newest verified one always.
        """
        return Retainer(self, rules).retain()

    def judge(self, rules: retention.Rules) -> Retained:
        """What `retain` would keep and remove now; nothing is changed."""
        return Retainer(self, rules).judge()

    def remove(self, point: RestorePoint) -> None:
        """Ends a checkpoint: after the first deletion it does not exist, whatever happens to the others."""
        parts = [self.path(folder, *_place(point.generation, point.step)) for folder in _PARTS]
        shards = self.storage.list(parts[1])
        named = frozenset[str]()
        if not shards:  # one of files has none: its bytes are shared with others
            with contextlib.suppress(Damaged):
                named = blobs.named_by(self, point)
        self.storage.delete(self.manifest_path(point.generation, point.step))
        self._delete_below(parts[0])
        for entry in shards:
            self.storage.delete(entry.path)
        self.blobs_named.pop(point[:2], None)
        if named:
            blobs.remove_unnamed(self, named)
        # Once more, against a writer that was asleep and has committed it again meanwhile (see fencing.py).
        self.storage.delete(self.manifest_path(point.generation, point.step))
        self.storage.delete(self.quarantine_path(point.generation, point.step))

    def sweep(self, protect: Collection[tuple[Generation, int]] = (), *, by: Generation | None = None) -> int:
        """Removes what no commit will ever need; returns how many objects. By the leader of the newest
        generation: when another than `by` is the newest, nothing is done.

        These are parts without a manifest: of superseded generations, and of the newest one before its newest
        commit. `protect`: (generation, step) of snapshots that are still on their way, an adopted one among
        them. Checkpoints off the chain go too, once the newest generation has committed one of its own; those
        from before the chain's root stay: a script was told to start over, and a person may want them back.
        Pinned ones stay, and the newest few in quarantine.
        """
        return sweeping.sweep(self, TEMPORARY_AGE_S, protect, by)

    def delete_all(self) -> None:
        """Removes everything of the job: its checkpoints, logs and code."""
        for folder in ("manifests", *_PARTS, blobs.FOLDER):
            self._delete_below(self.path(folder))
        self._delete_below(self.job_id)

    def _delete_below(self, folder: str) -> None:
        for entry in self.storage.list(folder):
            self.storage.delete(entry.path)

    def _points(self, folder: str) -> list[RestorePoint]:
        return [RestorePoint(*place, entry.modified_us) for entry, place in self._entries(folder)]

    def places(self, folder: str) -> list[tuple[str, tuple[Generation, int]]]:
        """Objects below one of the job's folders, each with the (generation, step) it belongs to."""
        return [(entry.path, place) for entry, place in self._entries(folder)]

    def _entries(self, folder: str) -> list[tuple[Entry, tuple[Generation, int]]]:
        top = self.path(folder)
        suffix = "" if folder in _PARTS else ".json"
        found = [(entry, _place_in(entry, top, suffix)) for entry in self.storage.list(top)]
        return [(entry, place) for entry, place in found if place is not None]


def _newest_first(points: Iterable[RestorePoint]) -> list[RestorePoint]:
    return sorted(points, key=lambda p: (p.step, p.generation), reverse=True)


def _place(generation: Generation, step: int) -> tuple[str, str]:
    return format_generation(generation), f"{step:012d}"


def _place_in(entry: Entry, top: str, suffix: str = "") -> tuple[Generation, int] | None:
    """(generation, step) of an object below `top`; None for what is not ours."""
    parts = entry.path.removeprefix(f"{top}/").split("/")
    if len(parts) < 2:
        return None
    step = parts[1].removesuffix(suffix)
    if (suffix and step == parts[1]) or not (step.isascii() and step.isdigit() and len(step) >= 12):
        return None
    try:
        return strict_generation(parts[0]), int(step)
    except ValueError:
        return None


def _generation_in(path: str, text: str) -> Generation:
    try:
        return strict_generation(text)
    except ValueError as error:
        raise Damaged(f"{path}: no generation's name") from error
