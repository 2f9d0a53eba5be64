"""What is wrong with an answer, and what is wrong with the thing: reading again before anything is called damaged.

Clients and proxies hand on truncated and corrupted answers without a word (FIELD.md). A thing that is damaged gives
the same bytes every time; so only an answer that came several times over is believed.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, TypeVar

from orch_workers.checkpoint.errors import Damaged, NotFound, StorageUnavailable
from orch_workers.checkpoint.format import digest_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from orch_workers.checkpoint.objects import Storage

SAME_ANSWERS = 3
"""So often the same wrong answer, and it is what is stored."""
READS_MAX = 16
"""Then storage is in trouble, and asked again later."""

T = TypeVar("T")


class Doubt:
    """Wrong answers to one question."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._seen: Counter[str] = Counter()
        self._reads = 0

    def is_settled(self, answer: bytes | memoryview | str | None) -> bool:
        """Counts a wrong answer; True when it is believed by now. None: one cut short, which proves nothing.

        Raises StorageUnavailable when the answers go on differing.
        """
        self._reads += 1
        if answer is not None:
            key = answer if isinstance(answer, str) else digest_of(answer)
            self._seen[key] += 1
            if self._seen[key] >= SAME_ANSWERS:
                return True
        if self._reads >= READS_MAX:
            raise StorageUnavailable(
                f"{self._what}: {self._reads} reads gave answers that are cut short or differ"
            )
        return False


def read_surely(storage: Storage, path: str, limit_bytes: int, parse: Callable[[bytes], T]) -> T:
    """What `parse` makes of an object; its Damaged when the object is so, or missing, or longer than the limit."""
    doubt = Doubt(path)
    while True:
        try:
            data = storage.read(path, 0, limit_bytes + 1)
        except NotFound as error:
            if doubt.is_settled("missing"):
                raise Damaged(f"{path} is missing") from error
            continue
        try:
            if len(data) > limit_bytes:
                raise Damaged(f"{path} is longer than {limit_bytes} bytes")
            return parse(data)
        except Damaged:
            if doubt.is_settled(data if _is_whole(storage, path, data, limit_bytes) else None):
                raise


def _is_whole(storage: Storage, path: str, data: bytes, limit_bytes: int) -> bool:
    try:
        return len(data) == min(storage.size(path), limit_bytes + 1)
    except NotFound:
        return False
