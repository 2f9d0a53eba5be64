"""What is left of a file when its writer is killed: after each of its writes, and in the middle of each."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from orch_workers.files.formats import Examined


class Recorded(io.BytesIO):
    """A file in memory that remembers what was done to it, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.done: list[tuple[int, bytes] | int] = []
        """(offset, bytes) for a write, the new size for a truncation."""

    def write(self, data) -> int:
        self.done.append((self.tell(), bytes(data)))
        return super().write(data)

    def truncate(self, size: int | None = None) -> int:
        self.done.append(self.tell() if size is None else size)
        return super().truncate(size)

    def states(self, cuts: int) -> Iterator[bytes]:
        """All contents that a kill can leave, each write torn at up to `cuts` places; the last one is the whole."""
        content = bytearray()
        yield b""
        for step in self.done:
            if isinstance(step, int):
                content[step:] = bytes(max(0, step - len(content)))
                yield bytes(content)
                continue
            offset, data = step
            for end in sorted({max(1, len(data) * part // cuts) for part in range(1, cuts + 1)}):
                torn = bytearray(content)
                torn += bytes(max(0, offset - len(torn)))
                torn[offset : offset + end] = data[:end]
                yield bytes(torn)
            content = torn


def examined(folder: Path, name: str, content: bytes) -> Examined:
    from orch_workers.files.formats import examine

    path = folder / "examined"
    path.write_bytes(content)
    return examine(path, name)
