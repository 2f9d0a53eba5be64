"""What the checkpoint engine asks of a storage: objects that are created once and never replaced."""

from __future__ import annotations

import contextlib
import secrets
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from orch_workers.checkpoint.errors import (
    AlreadyExists,
    NotFound,
    StorageError,
    StorageRefused,
    StorageUnavailable,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

TEMPORARY_PREFIX = ".tmp-"
"""Names that begin like this are a writer's own and are never listed."""
PATH_CHARACTERS_MAX = 900
COMPARE_BYTES = 8 << 20
"""Read at a time when an object is compared with what should be in it."""

Buffer = bytes | bytearray | memoryview


class Entry(NamedTuple):
    """One object; `path` is relative to the storage's URL."""

    path: str
    size_bytes: int
    modified_us: int


class Storage(ABC):
    """Paths are relative, with `/`. Every method raises one of the `StorageError`s and nothing else."""

    shard_bytes = 256 << 20
    """A shard ends with the tensor that reaches this."""
    writes_at_once = 2
    """Shards that are written beside one another; what a write holds in memory counts so many times."""
    reads_at_once = 4
    """Reads under way while a checkpoint is restored."""
    fenced_bytes_max = 1 << 62
    """Of two writers of one name, each with an object above this, both may win: whoever writes such a one
    chooses a name that nobody else has.
    """

    def __init__(self, url: str, *, unfenced: bool = False) -> None:
        self.url = url
        self.unfenced = unfenced
        """The job's owner accepts that two writers may both win (checkpoint.unfenced)."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url})"

    def __reduce__(self) -> NoReturn:
        # A pickled file system carries its secret, and Ray would send it around.
        raise TypeError("a Storage is not pickled: open it where it is used")

    def create(self, path: str, data: Buffer | Sequence[Buffer]) -> bool:
        """Writes a new object, whole and durable when this returns.

        True: written. False: exactly this content was there already (an earlier try, or an equal writer).
        Raises AlreadyExists when other content is there. An error whose outcome is unknown (a time-out after
        the write has landed) is resolved by looking.
        """
        checked_path(path)
        parts = [data] if isinstance(data, (bytes, bytearray, memoryview)) else data
        buffers = [memoryview(part).cast("B") for part in parts if len(part)]
        try:
            self._create(path, buffers)
        except AlreadyExists as error:
            try:
                if not self._holds(path, buffers):
                    raise
            except NotFound as gone:
                raise StorageUnavailable(f"{error}; but it is not there") from gone
            self.settle(path)
            return False
        except StorageUnavailable:
            with contextlib.suppress(StorageError):
                if self._holds(path, buffers):
                    self.settle(path)
                    return True
            raise
        return True

    @abstractmethod
    def _create(self, path: str, buffers: Sequence[memoryview]) -> None: ...

    def settle(self, path: str) -> None:  # noqa: B027 - nothing to do is the rule; local files are the exception
        """Makes an object durable that a killed writer may have left visible, but not yet durable.

        For whoever finds an object and builds on it instead of writing it.
        """

    def _holds(self, path: str, buffers: Sequence[memoryview]) -> bool:
        if self.size(path) != sum(map(len, buffers)):
            return False
        start = 0
        for buffer in buffers:
            for at in range(0, len(buffer), COMPARE_BYTES):
                piece = buffer[at : at + COMPARE_BYTES]
                if self.read(path, start, start + len(piece)) != piece:
                    return False
                start += len(piece)
        return True

    @abstractmethod
    def size(self, path: str) -> int:
        """Bytes of an object; NotFound when there is none."""

    def exists(self, path: str) -> bool:
        try:
            self.size(path)
        except NotFound:
            return False
        return True

    @abstractmethod
    def read(self, path: str, start: int | None = None, end: int | None = None) -> bytes:
        """Bytes [start, end) of an object, fewer where it ends before; NotFound when there is none."""

    def read_into(self, path: str, start: int, view: memoryview) -> int:
        """Fills `view` from `start` on. Returns how many bytes there were."""
        found = self.read(path, start, start + len(view))
        view[: len(found)] = found
        return len(found)

    @abstractmethod
    def delete(self, path: str) -> None:
        """Removes an object, durably; one that is not there is no error, and will not come back."""

    @abstractmethod
    def list(self, prefix: str = "") -> list[Entry]:
        """All objects below the folder `prefix`, sorted by path; nothing there is an empty list."""

    def folders(self) -> Sequence[str]:
        """Names of the folders right below the storage's URL, sorted. Not for every step: a few requests each."""
        return sorted({entry.path.partition("/")[0] for entry in self.list() if "/" in entry.path})

    def sweep_temporaries(self, min_age_s: float) -> int:
        """Removes leftovers of killed writers that are no objects yet. Returns how many."""
        return 0

    def check_writable(self) -> None:
        """Proves, with an object that is removed again, that this storage can be written, read, and refuses
        to replace. Raises StorageRefused or StorageUnavailable with the reason.
        """
        path = f"orch-write-test-{secrets.token_hex(8)}"
        try:
            self.create(path, b"first")
            if self.read(path) != b"first":
                raise StorageRefused(f"{self.url}: what was written does not read back")
            if not self.unfenced:
                self._refuses_second(path)
        except NotFound as error:
            raise StorageRefused(f"{self.url}: what was written cannot be read back: {error}") from error
        finally:
            with contextlib.suppress(StorageError):
                self.delete(path)

    def _refuses_second(self, path: str) -> None:
        try:
            self.create(path, b"second")
        except AlreadyExists:
            return
        raise StorageRefused(
            f"{self.url}: a second write to the same name was not refused, so two writers could both "
            f"commit the "
            f"same checkpoint; use another storage, or set checkpoint.unfenced: true to accept that"
        )


def checked_path(path: str) -> str:
    """`path` without a trailing slash; StorageRefused when it could leave its folder."""
    parts = path.rstrip("/").split("/")
    bad = len(path) > PATH_CHARACTERS_MAX or any(
        part in {"", ".", ".."} or part.startswith(TEMPORARY_PREFIX) or "\\" in part or not part.isprintable()
        for part in parts
    )
    if bad:
        raise StorageRefused(f"{path!r} is no object's path")
    return "/".join(parts)
