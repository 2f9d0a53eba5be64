"""What can go wrong between a snapshot and its place in storage.

`StorageError`s are about reaching and writing storage: nothing is known about the checkpoints behind it, so
nothing is concluded from them ("cannot reach" is not "damaged"). `CheckpointError`s are about what was found.
"""

# ruff: noqa: N818  The names say what is the matter, as `except Superseded:` is read aloud.

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from orch_workers.training.slots import format_generation

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "AlreadyExists",
    "CheckpointError",
    "Damaged",
    "NotFound",
    "NothingRestorable",
    "Rejected",
    "SnapshotChanged",
    "StorageError",
    "StorageRefused",
    "StorageUnavailable",
    "Superseded",
    "WrittenByNewer",
]


class StorageError(Exception):
    """Storage did not do what was asked; the message says what, why and where."""


class AlreadyExists(StorageError):
    """A create-only write found something else under that name; it is untouched."""


class NotFound(StorageError):
    """No such object. A bucket or a machine that cannot be reached is never reported as this."""


class StorageUnavailable(StorageError):
    """Away, slow, full or in error: the same call may succeed later."""


class StorageRefused(StorageError):
    """Not without a person: permissions, credentials, a missing bucket, a protocol that cannot be fenced."""


class CheckpointError(Exception):
    """Something about a checkpoint or a snapshot itself."""


class Superseded(CheckpointError):
    """A newer generation exists and what was to be written lies off its chain: the writer must end."""


class Damaged(CheckpointError):
    """What is in storage is not what was committed; the message says what differs. Quarantine it."""

    needs_version: int | None = None


class WrittenByNewer(Damaged):
    """Whole, as far as this orch can tell, but of a format it does not know: set aside until one that does.

    `needs_version`: the format it is of; its mark in quarantine counts for nothing to whoever knows that.
    """

    def __init__(self, what: str, version: int, known: int) -> None:
        super().__init__(what, version, known)
        self.what, self.needs_version, self.known = what, version, known

    def __str__(self) -> str:
        return (
            f"{self.what}: written by a newer orch (format version {self.needs_version}; this one reads up to "
            f"{self.known}); use that one again to have it back"
        )


class SnapshotChanged(CheckpointError):
    """The slot was given away while it was being written to storage. Nothing was committed."""


class Rejected(NamedTuple):
    """A checkpoint that could not be restored, and why."""

    generation: tuple[int, int]
    step: int
    reason: str

    def __str__(self) -> str:
        return f"{format_generation(self.generation)}  step {self.step:>12}  {self.reason}"


class NothingRestorable(CheckpointError):
    """Checkpoints exist and none of them can be restored. The job must stop: never from scratch in
    silence.
    """

    def __init__(self, message: str, rejected: Sequence[Rejected] = ()) -> None:
        super().__init__(message, tuple(rejected))
        self.message = message
        self.rejected = tuple(rejected)

    def __str__(self) -> str:
        return "\n".join([self.message, *(f"  {one}" for one in self.rejected)])
