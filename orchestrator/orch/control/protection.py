"""Does anything keep the job's state? Told at submit by a look at the code, corrected as soon as it runs."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

_IMPORTS_ORCH = re.compile(rb"^\s*(?:import|from)\s+(?:\w+\s*,\s*)*orch\b", re.MULTILINE)
FILE_BYTES_MAX = 1 << 20
FILES_MAX = 5_000


def imports_orch(source: Path, run: str) -> bool:
    """Whether any Python file of a shipped zip, or of a folder that is run in place, imports orch."""
    if _IMPORTS_ORCH.search(run.encode()) or re.search(r"\bimport orch\b", run):
        return True
    texts = _in_zip(source) if source.is_file() else _in_folder(source)
    return any(_IMPORTS_ORCH.search(text) for text in texts)


def _in_zip(path: Path) -> Iterator[bytes]:
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist()[:FILES_MAX]:
            if entry.filename.endswith(".py") and entry.file_size <= FILE_BYTES_MAX:
                yield archive.read(entry)


def _in_folder(folder: Path) -> Iterator[bytes]:
    for number, path in enumerate(folder.rglob("*.py")):
        if number >= FILES_MAX:
            return
        if path.is_file() and path.stat().st_size <= FILE_BYTES_MAX:
            yield path.read_bytes()
