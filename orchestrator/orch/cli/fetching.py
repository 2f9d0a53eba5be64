"""Outputs of a job, from the server's zip into a folder. Nothing is ever written outside that folder."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from orch.model.errors import OrchError, WrongUse

if TYPE_CHECKING:
    from orch.api.client import Client
    from orch.cli.output import Progress

MEMORY_BYTES_MAX = 8 << 20
"""A zip beyond this is kept on disk until it is unpacked."""


@dataclass(frozen=True, slots=True)
class Fetched:
    path: str
    size_bytes: int


def fetch_outputs(client: Client, job: str, folder: Path, shown: Progress) -> list[Fetched]:
    """Downloads and unpacks; returns the files. NoSuchJob; WrongUse if there is nothing or no place."""
    shown.show(f"fetching the outputs of {job}")
    with tempfile.SpooledTemporaryFile(max_size=MEMORY_BYTES_MAX) as archive:

        def told(done: int, size: int | None) -> None:
            if size:
                shown.measure(f"fetching the outputs of {job}", done / size)

        client.outputs(job, archive, on_progress=told)  # type: ignore[arg-type]  # it has write(), all that is used
        archive.seek(0)
        try:
            with zipfile.ZipFile(archive) as zipped:
                return _unpack(zipped, folder)
        except zipfile.BadZipFile as error:
            raise OrchError(f"the outputs of {job} arrived damaged ({error}); try again") from error
        except OSError as error:
            raise WrongUse(f"cannot write to {folder}: {error.strerror or error}") from error


def _unpack(zipped: zipfile.ZipFile, folder: Path) -> list[Fetched]:
    entries = [entry for entry in zipped.infolist() if not entry.is_dir()]
    places = [_place(entry, folder) for entry in entries]  # all are judged before the first is written
    folder.mkdir(parents=True, exist_ok=True)
    for entry, place in zip(entries, places, strict=True):
        place.parent.mkdir(parents=True, exist_ok=True)
        if not place.parent.resolve().is_relative_to(folder.resolve()):
            raise WrongUse(f"{place.parent} is a link that leads out of {folder}; nothing is written there")
        _write(zipped, entry, place)
    return [Fetched(entry.filename, entry.file_size) for entry in entries]


def _place(entry: zipfile.ZipInfo, folder: Path) -> Path:
    path = PurePosixPath(entry.filename)
    unsafe = path.is_absolute() or ".." in path.parts or "\\" in entry.filename or ":" in path.parts[0]
    if unsafe or stat.S_ISLNK(entry.external_attr >> 16):
        raise OrchError(f"the server sent {entry.filename!r}, which does not stay in one folder; refused")
    return folder.joinpath(*path.parts)


def _write(zipped: zipfile.ZipFile, entry: zipfile.ZipInfo, place: Path) -> None:
    """In one step: an interrupted fetch leaves old files whole."""
    descriptor, name = tempfile.mkstemp(prefix=".orch-", dir=place.parent)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as target, zipped.open(entry) as source:
            shutil.copyfileobj(source, target)
        temporary.chmod(_mode(entry))
        temporary.replace(place)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _mode(entry: zipfile.ZipInfo) -> int:
    """What may be executed over there may be executed here; the rest is the reader's own affair."""
    executable = (entry.external_attr >> 16) & 0o100
    umask = os.umask(0)
    os.umask(umask)
    return (0o777 if executable else 0o666) & ~umask
