"""The generation: (attempt, restart), the pair that fences whatever an older start still writes.

Not to be confused with an epoch, which is a pass over the data.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_TEXT = re.compile(r"(\d{6,9})\.(\d{6,9})", re.ASCII)


class Generation(NamedTuple):
    """Ordered as a pair. The attempt is issued by the controller alone, the restart by the leader alone.

    Both count from 1; restart 0 stands for "no training process of this attempt was started yet".
    """

    attempt: int
    restart: int

    def __str__(self) -> str:
        """The form used in paths, manifests and messages: ``000001.000002``, which sorts as the pair does."""
        return f"{self.attempt:06d}.{self.restart:06d}"

    @classmethod
    def parse(cls, text: str) -> Generation:
        """Reads what `str` wrote; ValueError for anything else."""
        match = _TEXT.fullmatch(text)
        if match is None:
            raise ValueError(f"{text!r} is no generation; one looks like 000001.000002 (attempt, restart)")
        return cls(int(match[1]), int(match[2]))
