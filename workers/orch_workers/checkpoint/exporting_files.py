"""The files of a checkpoint as the script wrote them, in a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from orch_workers.checkpoint import blobs
from orch_workers.checkpoint.errors import CheckpointError
from orch_workers.checkpoint.exporting import Exported, new_file

if TYPE_CHECKING:
    from orch_workers.checkpoint.content import Content, Moved

FORMAT = "files"


def export(
    content: Content,
    into: Path,
    *,
    only: Sequence[str] = (),
    replace: bool = False,
    moved: Moved | None = None,
) -> list[Exported]:
    """Writes the files below the folder `into`; each is whole or not there. `only`: these, else all.

    Damaged: bytes that do not match their digests. FileExistsError: one is there, and not to be replaced.
    """
    files = [file for part in content.ranks for file in part.files if not only or file.path in only]
    known = {file.path for file in files}
    if not files or set(only) - known:
        missing = ", ".join(sorted(set(only) - known)) or "any file"
        raise CheckpointError(
            f"{content.point} does not hold {missing}; `orch checkpoints show` lists what it has"
        )
    found = []
    for file in files:
        path = into / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        if file.link:
            if replace:
                path.unlink(missing_ok=True)
            path.symlink_to(file.link)
        else:
            with new_file(path, replace=replace) as out:
                for part in file.parts:
                    data = memoryview(bytearray(part.size_bytes))
                    blobs.read(content.catalog, part, data)
                    out.write(data)
                    if moved is not None:
                        moved(part.size_bytes)
        found.append(Exported(path, (), 0, file.size_bytes))
    return found
