"""The format of a checkpoint (docs/checkpoint-format.md): safetensors shards and JSON manifests.

A shard's data region is a piece of the snapshot's own layout, byte for byte, so writing is one pass over
memory and reading puts the bytes where they were. Gaps between the aligned entries are named `~pad/N` in the
header, because safetensors refuses holes.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, TypeVar

import xxhash
from pydantic import BaseModel, Field, ValidationError

from orch_workers.checkpoint.chain import Generation, strict_generation
from orch_workers.checkpoint.direct import BLOCK_BYTES
from orch_workers.checkpoint.errors import Damaged, WrittenByNewer
from orch_workers.checkpoint.file_records import (
    Count,
    Digest,
    FileRecord,
    Name,
    Record,
    check_files,
)
from orch_workers.training.collection import no_collection
from orch_workers.training.slots import ALIGNMENT_BYTES, META_BYTES_MAX

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

FORMAT_VERSION = 1
VERSION_READ_MAX = 2
"""Only rank manifests with `shared` are of version 2: a reader of version 1 would miss those tensors."""
DIGEST_CHUNK_BYTES = 8 << 20
SHARD_BYTES_TARGET = 256 << 20
"""A shard ends with the entry that reaches this; an entry is never split."""
SHARD_ENTRIES_MAX = 100_000
HEADER_BYTES_MAX = 100_000_000
"""What safetensors itself accepts."""
MANIFEST_BYTES_MAX = META_BYTES_MAX + (256 << 20)
PAD_PREFIX = "~pad/"
DIMENSIONS_MAX = 64
"""As many as NumPy and PyTorch have."""
WORDS_SHOWN_CHARS = 200
"""Of what a damaged document says, in an error."""

_DTYPE_BITS = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("I64", "U64", "F64"), 64),
}
"""What every safetensors library reads. Everything else is stored as U8, its dtype and shape in the
manifest.
"""
_RAW_DTYPE_BITS = {"C64": 64, "C128": 128, "F8_E8M0": 8, "F8_E5M2FNUZ": 8, "F8_E4M3FNUZ": 8}
"""Those of the others whose size is known, and is checked."""

Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Dtype = Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9_]{0,31}$")]
Shape = Annotated[tuple[Count, ...], Field(max_length=DIMENSIONS_MAX)]


class PieceRecord(Record):
    """One rank's piece of one tensor."""

    name: Name
    dtype: Dtype
    shape: Shape
    global_shape: Shape
    offsets: Shape
    """Where the piece begins in the global tensor."""
    size_bytes: Count
    digests: tuple[Digest, ...]
    """xxh3-128 of each 8 MiB from the tensor's own beginning."""

    def is_same_as(self, other: PieceRecord) -> bool:
        return all(getattr(self, name) == getattr(other, name) for name in PieceRecord.model_fields)


class TensorRecord(PieceRecord):
    """One whose bytes this rank has written."""

    shard: Count
    start: Count
    """From the beginning of the shard's data region."""


class SharedRecord(PieceRecord):
    """One whose bytes are the same on another rank, which has written them under the same name."""

    rank: Count


class ShardRecord(Record):
    path: Name
    size_bytes: Count
    data_offset: Annotated[int, Field(ge=0, le=8 + HEADER_BYTES_MAX, strict=True)]
    """Where the data region begins: 8 bytes of length, then the header, come before it."""
    header_digest: Digest


class RankManifest(Record):
    """`ranks/G/S/R.json`: everything one rank saved."""

    format: Literal["orch-rank"] = "orch-rank"
    version: int = FORMAT_VERSION
    job: str
    generation: str
    step: Count
    rank: Count
    world_size: Annotated[int, Field(ge=1, strict=True)]
    kind: str = "state"
    data_bytes: Count
    shards: tuple[ShardRecord, ...]
    tensors: tuple[TensorRecord, ...]
    shared: tuple[SharedRecord, ...] = ()
    files: tuple[FileRecord, ...] = ()
    """Of a checkpoint of `kind: files`, which has neither shards nor tensors."""
    meta: dict[str, Any]
    """The snapshot's description without its entries: the typed tree, epoch, metrics, frameworks, …"""


class RankRecord(Record):
    rank: Count
    path: Name
    size_bytes: Count
    digest: Digest
    data_bytes: Count


class Manifest(Record):
    """`manifests/G/S.json`: the commit."""

    format: Literal["orch-checkpoint"] = "orch-checkpoint"
    version: int = FORMAT_VERSION
    job: str
    generation: str
    step: Count
    epoch: int | None = None
    kind: str = "state"
    world_size: Annotated[int, Field(ge=1, strict=True)]
    created_us: int
    size_bytes: Count
    metrics: Any = None
    code: str | None = None
    frameworks: Any = None
    written_by: str = ""
    took_s: Seconds | None = None
    blocked_s: Seconds | None = None
    ranks: tuple[RankRecord, ...]


_R = TypeVar("_R", Manifest, RankManifest)


class Piece(NamedTuple):
    """A shard before it is written: entries of a slot, and the stretch of its data region they lie in."""

    start: int
    end: int
    entries: tuple[dict[str, Any], ...]


def is_native(dtype: str) -> bool:
    return dtype in _DTYPE_BITS


def digests_of(view: memoryview) -> tuple[str, ...]:
    """xxh3-128 of each 8 MiB of `view`."""
    if len(view) <= DIGEST_CHUNK_BYTES:  # nearly all of many small tensors
        return (xxhash.xxh3_128_hexdigest(view),) if len(view) else ()
    return tuple(
        xxhash.xxh3_128_hexdigest(view[at : at + DIGEST_CHUNK_BYTES])
        for at in range(0, len(view), DIGEST_CHUNK_BYTES)
    )


def digest_of(data: bytes | memoryview) -> str:
    return xxhash.xxh3_128_hexdigest(data)


def check_entries(entries: Iterable[dict[str, Any]], data_bytes: int) -> list[dict[str, Any]]:
    """The entries of a slot in the order of their offsets; ValueError when they cannot be stored as they
    are.
    """
    ordered = sorted(entries, key=lambda e: (e["offset"], e["size_bytes"]))
    end, names = 0, set()
    for entry in ordered:
        name, offset, size = entry["name"], entry["offset"], entry["size_bytes"]
        if name in names or name.startswith(PAD_PREFIX) or name == "__metadata__":
            raise ValueError(f"entry {name!r} occurs twice, or has a reserved name")
        if offset % ALIGNMENT_BYTES or offset < end or offset + size > data_bytes:
            raise ValueError(f"entry {name!r} is misaligned, overlaps another or lies outside the data")
        if problem := _size_problem(entry["dtype"], entry["shape"], size):
            raise ValueError(f"entry {name!r}: {problem}")
        names.add(name)
        end = offset + size
    return ordered


def cut(ordered: Sequence[dict[str, Any]], data_bytes: int, shard_bytes: int | None = None) -> list[Piece]:
    """Divides a snapshot's layout into shards. Together they are [0, data_bytes), each beginning aligned.

    A shard ends with the entry that reaches `shard_bytes`, which is at most SHARD_BYTES_TARGET.
    """
    target = min(SHARD_BYTES_TARGET, shard_bytes or SHARD_BYTES_TARGET)
    pieces: list[Piece] = []
    start, pending = 0, list[dict[str, Any]]()
    for entry in ordered:
        full = entry["offset"] - start >= target or len(pending) >= SHARD_ENTRIES_MAX
        if pending and full and entry["size_bytes"]:
            pieces.append(Piece(start, entry["offset"], tuple(pending)))
            start, pending = entry["offset"], []
        pending.append(entry)
    if data_bytes > start or pending:
        pieces.append(Piece(start, data_bytes, tuple(pending)))
    return pieces


def shard_header(piece: Piece, metadata: dict[str, str], phase: int = 0) -> bytes:
    """Length and header of a safetensors file whose data region is the piece's stretch."""
    return pack_header(header_entries(piece), metadata, phase)


def header_entries(piece: Piece) -> str:
    """The header's JSON without its metadata and its closing brace."""
    document: dict[str, Any] = {}
    position, pads = piece.start, 0
    for entry in piece.entries:
        offset, size = entry["offset"], entry["size_bytes"]
        if offset > position:
            document[f"{PAD_PREFIX}{pads}"] = _pad(position - piece.start, offset - piece.start)
            pads += 1
        native = is_native(entry["dtype"])
        document[entry["name"]] = {
            "dtype": entry["dtype"] if native else "U8",
            "shape": list(entry["shape"]) if native else [size],
            "data_offsets": [offset - piece.start, offset - piece.start + size],
        }
        position = offset + size
    if piece.end > position:
        document[f"{PAD_PREFIX}{pads}"] = _pad(position - piece.start, piece.end - piece.start)
    return json.dumps(document, separators=(",", ":"))[1:-1]


def pack_header(entries: str, metadata: dict[str, str], phase: int = 0) -> bytes:
    """The header, filled up with spaces to a multiple of 64 that is `phase` bytes into a block of 4096.

    `phase`, a multiple of 64, is where the data begins within a page of memory: it then begins at the same
    place of a block of the file, and the disk can take it from memory as it lies (direct.py).
    """
    described = json.dumps({"__metadata__": metadata}, separators=(",", ":"))[:-1]
    encoded = (f"{described},{entries}}}" if entries else f"{described}}}").encode()
    encoded += b" " * ((phase - 8 - len(encoded)) % BLOCK_BYTES)
    if len(encoded) > HEADER_BYTES_MAX:
        raise ValueError(
            f"the header of a shard would have {len(encoded)} bytes; {HEADER_BYTES_MAX} is the limit"
        )
    return len(encoded).to_bytes(8, "little") + encoded


def _pad(start: int, end: int) -> dict[str, Any]:
    return {"dtype": "U8", "shape": [end - start], "data_offsets": [start, end]}


def encode(record: Record) -> bytes:
    return sealed(json.dumps(_plain(record), separators=(",", ":"), allow_nan=False).encode())


def encode_rank(manifest: RankManifest, tensors: Sequence[str], shared: Sequence[str] = ()) -> bytes:
    """A rank's manifest with `tensors` and `shared`, JSON objects in rows, in place of its own: 20,000 of them as
    records would take longer to make than their bytes to write.
    """
    document = json.dumps(_plain(manifest), separators=(",", ":"), allow_nan=False)
    before, found, after = document.partition('"tensors":[],"shared":[]')
    assert found, "the manifest has tensors of its own"
    rows = f'"tensors":[{",".join(tensors)}],"shared":[{",".join(shared)}]'
    return sealed(f"{before}{rows}{after}".encode())


_SEAL = b',"digest":"'
_SEAL_BYTES = len(_SEAL) + 32 + 2


def sealed(document: bytes) -> bytes:
    """A JSON object with one key more, its last: `digest`, the xxh3-128 of all that stands before that key."""
    body = document[:-1]
    return body + _SEAL + digest_of(body).encode() + b'"}'


def parse_sealed(data: bytes, what: str) -> Any:
    """The JSON document in `data`; Damaged when it is none, or is not what its own digest says.

    A document without a digest is accepted: there were some before.
    """
    body, seal = data[:-_SEAL_BYTES], data[-_SEAL_BYTES:]
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{what}: no JSON document ({shown(error)})") from error
    if isinstance(document, dict) and "digest" in document:
        if seal != _SEAL + digest_of(body).encode() + b'"}':
            raise Damaged(f"{what}: does not match its own digest")
        del document["digest"]
    return document


def shown(what: object) -> str:
    """What stands in a document, as far as it goes into an error."""
    text = str(what)
    return text if len(text) <= WORDS_SHOWN_CHARS else f"{text[:WORDS_SHOWN_CHARS]}…"


def _plain(value: Any) -> Any:
    # Not model_dump: it refuses a tree nested deeper than 255, and its JSON has null for inf and nan.
    if isinstance(value, BaseModel):
        return {name: _plain(getattr(value, name)) for name in type(value).model_fields}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value


def parse_manifest(data: bytes, *, job: str, generation: Generation, step: int) -> Manifest:
    """The step's manifest, or Damaged with what is wrong with it."""
    manifest = _parse(Manifest, data, "manifest")
    _check_identity(manifest, job, generation, step)
    ranks = [r.rank for r in manifest.ranks]
    if len(ranks) != manifest.world_size or ranks != list(range(len(ranks))):
        raise Damaged(f"manifest: ranks {shown(ranks)} of {manifest.world_size}")
    return manifest


def parse_rank(data: bytes, *, job: str, generation: Generation, step: int, rank: int) -> RankManifest:
    """A rank's manifest whose layout is whole and within its shards, or Damaged with what is wrong with
    it.
    """
    with no_collection():
        manifest = _parse(RankManifest, data, "rank manifest")
        _check_identity(manifest, job, generation, step)
        if manifest.rank != rank:
            raise Damaged(f"rank manifest: is of rank {manifest.rank}, not {rank}")
        _check_layout(manifest)
        check_files(manifest.files)
    return manifest


def _parse(model: type[_R], data: bytes, what: str) -> _R:
    document = parse_sealed(data, what)
    version = document.get("version") if isinstance(document, dict) else None
    readable = VERSION_READ_MAX if model is RankManifest else FORMAT_VERSION
    if isinstance(version, int) and version > readable:
        raise WrittenByNewer(what, version, readable)
    try:
        return model.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise Damaged(f"{what}: {place}: {shown(first['msg'])} ({error.error_count()} problems)") from error
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{what}: {shown(error)}") from error


def _check_identity(manifest: Manifest | RankManifest, job: str, generation: Generation, step: int) -> None:
    if manifest.version < 1:
        raise Damaged(f"{manifest.format}: format version {manifest.version}")
    if manifest.job != job:
        raise Damaged(f"{manifest.format}: belongs to job {shown(manifest.job)!r}, not {job!r}")
    try:
        same = strict_generation(manifest.generation) == generation
    except ValueError:
        same = False
    if not same or manifest.step != step:
        raise Damaged(
            f"{manifest.format}: is of generation {shown(manifest.generation)} step {manifest.step}"
        )


def _check_layout(manifest: RankManifest) -> None:
    sizes = [s.size_bytes - s.data_offset for s in manifest.shards]
    if manifest.rank >= manifest.world_size:
        raise Damaged(f"rank manifest: rank {manifest.rank} of {manifest.world_size}")
    if sum(sizes) != manifest.data_bytes or any(size < 0 for size in sizes):
        raise Damaged(f"rank manifest: shards of {sum(sizes)} bytes for {manifest.data_bytes} bytes of data")
    if any(size % ALIGNMENT_BYTES for size in sizes[:-1]):
        raise Damaged("rank manifest: a shard ends unaligned")
    pieces = [*manifest.tensors, *manifest.shared]
    if len({piece.name for piece in pieces}) != len(pieces):
        raise Damaged("rank manifest: a tensor is listed twice")
    for piece in pieces:
        if problem := _piece_problem(piece):
            raise Damaged(f"rank manifest: tensor {piece.name!r}{problem}")
    for shared in manifest.shared:
        if shared.rank == manifest.rank or shared.rank >= manifest.world_size:
            raise Damaged(
                f"rank manifest: tensor {shared.name!r} is said to be written by rank {shared.rank}"
            )
    shard, end = 0, 0
    for tensor in sorted(manifest.tensors, key=lambda t: (t.shard, t.start, t.size_bytes)):
        shard, end = tensor.shard, end if tensor.shard == shard else 0
        if shard >= len(sizes) or tensor.start < end or tensor.start + tensor.size_bytes > sizes[shard]:
            raise Damaged(f"rank manifest: tensor {tensor.name!r} overlaps another or lies outside its shard")
        if tensor.start % ALIGNMENT_BYTES:
            raise Damaged(f"rank manifest: tensor {tensor.name!r} is not aligned")
        end = tensor.start + tensor.size_bytes


def _piece_problem(piece: PieceRecord) -> str | None:
    if problem := _size_problem(piece.dtype, piece.shape, piece.size_bytes):
        return f": {problem}"
    if len(piece.digests) != -(-piece.size_bytes // DIGEST_CHUNK_BYTES):
        return f" has {len(piece.digests)} digests"
    if not len(piece.shape) == len(piece.global_shape) == len(piece.offsets):
        return ": its shapes differ in length"
    outside = zip(piece.offsets, piece.shape, piece.global_shape, strict=True)
    if any(offset + length > whole for offset, length, whole in outside):
        return " lies outside its global shape"
    return None


def _size_problem(dtype: str, shape: Sequence[int], size_bytes: int) -> str | None:
    bits = _DTYPE_BITS.get(dtype) or _RAW_DTYPE_BITS.get(dtype)
    if bits is not None and math.prod(shape) * bits != size_bytes * 8:
        return f"{dtype} of shape {shown(list(shape))} does not have {size_bytes} bytes"
    return None
