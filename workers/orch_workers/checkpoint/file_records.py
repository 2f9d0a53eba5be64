"""What a checkpoint of `kind: files` says of each file, and what all records have in common."""

from __future__ import annotations

from collections.abc import Iterable
from posixpath import dirname, join, normpath
from typing import Annotated

import xxhash
from pydantic import BaseModel, ConfigDict, Field

from orch_workers.checkpoint.errors import Damaged

SHOWN_CHARS = 200
"""Of a path, in an error."""

Count = Annotated[int, Field(ge=0, lt=1 << 62, strict=True)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
Name = Annotated[str, Field(min_length=1, max_length=4096)]


class Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class PartRecord(Record):
    """A piece of a file's bytes: the object `blobs/<digest>-<size_bytes>`, which other checkpoints may share."""

    digest: Digest
    """xxh3-128 of the piece."""
    size_bytes: Count

    @property
    def name(self) -> str:
        return f"{self.digest}-{self.size_bytes}"


class FileRecord(Record):
    """A file that the user's own code wrote (`kind: files`)."""

    path: Name
    """Below the job's working folder, with `/`."""
    size_bytes: Count
    mode: Annotated[int, Field(ge=0, le=0o7777, strict=True)] = 0o644
    mtime_ns: int = 0
    link: str = ""
    """Of a symbolic link its target, relative to it; such a one has no parts."""
    format: str = ""
    """What it was found to be (`torch`, `hdf5`, …), "" for what is not known."""
    parts: tuple[PartRecord, ...] = ()
    """In order; together they are the file."""

    @property
    def digest(self) -> str:
        """Of its only part; of several the digest of their digests."""
        digests = [part.digest for part in self.parts]
        return digests[0] if len(digests) == 1 else xxhash.xxh3_128_hexdigest("".join(digests).encode())

    @property
    def described(self) -> str:
        return f"→ {self.link}" if self.link else f"{self.size_bytes} bytes, {self.digest}"


def check_files(files: Iterable[FileRecord]) -> None:
    """Names that stay inside the working folder, each once, and parts that make the whole."""
    names = set[str]()
    for file in files:
        parts = file.path.split("/")
        if (
            file.path in names
            or file.path.startswith("/")
            or {"", ".", ".."} & set(parts)
            or "\0" in file.path
        ):
            raise Damaged(f"rank manifest: {file.path[:SHOWN_CHARS]!r} is no file's path, or is there twice")
        target = normpath(join(dirname(file.path), file.link))
        if file.link and (file.link.startswith("/") or target.split("/")[0] == ".."):
            raise Damaged(f"rank manifest: the link {file.path[:SHOWN_CHARS]!r} leaves the working folder")
        if sum(part.size_bytes for part in file.parts) != (0 if file.link else file.size_bytes):
            raise Damaged(
                f"rank manifest: the parts of {file.path[:SHOWN_CHARS]!r} do not make its {file.size_bytes} bytes"
            )
        names.add(file.path)
