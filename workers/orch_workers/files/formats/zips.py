"""Zip files: torch.save since 1.6, Keras' .keras, NumPy's .npz. Nothing is unpacked to disk, nothing is run."""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from typing import IO, Any

from orch_workers.files.formats import hdf5, pickles

PICKLE_BYTES_MAX = 64 << 20
"""Of a torch file's description; a larger one is not looked into."""
_LOCAL_HEADER = b"PK\x03\x04"
_LOCAL_HEADER_BYTES = 30


def examine(stream: IO[bytes]) -> tuple[str, str, Any]:
    """(kind, what is wrong with it, plain values). The kind is `torch`, `keras`, `npz` or `zip`.

    A zip that is cut short has no directory, which stands at its end. The checksums of its entries are not compared:
    torch can be told to write none.
    """
    try:
        with zipfile.ZipFile(stream) as archive:
            problem = _entries_problem(stream, archive)
            names = archive.namelist()
            kind = _kind(names)
            if problem:
                return kind, problem, None
            if kind == "torch":
                return kind, *_torch(archive, names)
            if kind == "keras":
                return kind, _keras_problem(archive, names), None
            return kind, "", None
    except (zipfile.BadZipFile, zlib.error, RuntimeError, EOFError, ValueError, OSError) as error:
        return "zip", f"it is no whole zip file ({error})", None


def _kind(names: list[str]) -> str:
    if any(name.endswith("/data.pkl") or name == "data.pkl" for name in names):
        return "torch"
    if "config.json" in names and "metadata.json" in names:
        return "keras"
    return "npz" if names and all(name.endswith(".npy") for name in names) else "zip"


def _entries_problem(stream: IO[bytes], archive: zipfile.ZipFile) -> str:
    """Whether each entry of the directory lies where it says: one that was overwritten in part has another there."""
    for entry in archive.infolist():
        stream.seek(entry.header_offset)
        header = stream.read(_LOCAL_HEADER_BYTES)
        if len(header) < _LOCAL_HEADER_BYTES or header[:4] != _LOCAL_HEADER:
            return f"its entry {entry.filename!r} is not where its directory says"
        begin = (
            entry.header_offset
            + _LOCAL_HEADER_BYTES
            + int.from_bytes(header[26:28], "little")
            + int.from_bytes(header[28:30], "little")
        )
        if begin + entry.compress_size > archive.start_dir:
            return f"its entry {entry.filename!r} is cut short"
    return ""


def _torch(archive: zipfile.ZipFile, names: list[str]) -> tuple[str, Any]:
    name = min((name for name in names if name.endswith("data.pkl")), key=len)
    if archive.getinfo(name).file_size > PICKLE_BYTES_MAX:
        return "", None
    return pickles.of_bytes(archive.read(name))


def _keras_problem(archive: zipfile.ZipFile, names: list[str]) -> str:
    for name in ("config.json", "metadata.json"):
        try:
            json.loads(archive.read(name))
        except ValueError as error:
            return f"its {name} is no JSON ({error})"
    weights = next((name for name in names if name.endswith(".weights.h5")), None)
    if weights is None:
        return "it has no weights"
    problem = hdf5.problem_of(io.BytesIO(archive.read(weights)))
    return f"its {weights}: {problem}" if problem else ""
