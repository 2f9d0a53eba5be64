"""Secrets do not leave the machine in logs: their values are blotted out before anybody else sees them.

The length stays, so that a byte offset means the same in the file and in what is shown of it.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

SECRET_BYTES_MIN = 4
"""Shorter values are not looked for: they would blot out half of every log."""


class Redactor:
    """Finds values, and every line of a value that has several (a private key, say)."""

    def __init__(self, values: Iterable[str] = ()) -> None:
        parts: set[bytes] = set()
        for value in values:
            encoded = value.encode(errors="surrogateescape")
            parts.update(part.strip() for part in (encoded, *encoded.splitlines()))
        # The longest first: one secret may be the beginning of another. Looked for ahead, so that overlapping
        # ones are all found: whether a byte is blotted out must not depend on where reading began.
        wanted = sorted((part for part in parts if len(part) >= SECRET_BYTES_MIN), key=len, reverse=True)
        self.longest_bytes = max(map(len, wanted), default=0)
        self._pattern = re.compile(b"(?=(" + b"|".join(map(re.escape, wanted)) + b"))") if wanted else None

    def redact(self, data: bytes) -> bytes:
        """`data` with every secret in it turned into as many asterisks."""
        if self._pattern is None:
            return data
        blotted = bytearray(data)
        for found in self._pattern.finditer(data):
            start, end = found.span(1)
            blotted[start:end] = b"*" * (end - start)
        return bytes(blotted)

    def redact_text(self, text: str) -> str:
        return self.redact(text.encode(errors="surrogateescape")).decode(errors="surrogateescape")

    def read(self, path: Path, start: int, end: int) -> bytes:
        """Bytes `start` to `end` of a file, redacted: a secret that lies across either edge is found too."""
        margin = max(0, self.longest_bytes - 1)
        first = max(0, start - margin)
        with path.open("rb") as file:
            file.seek(first, os.SEEK_SET)
            data = file.read(end + margin - first)
        return self.redact(data)[start - first : end - first]
