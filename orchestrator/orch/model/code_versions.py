"""The versions of a job's code, as its code document tells them: the present one, and `earlier` those before it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def versions_of(code: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Oldest first: version, attempt (the first that ran it), digest, size_bytes, git_commit, git_dirty.

    A document without numbers is of a job that was never given other code.
    """
    if not code:
        return []
    newest = {name: value for name, value in code.items() if name != "earlier"}
    return [{"version": 1, "attempt": 1, **one} for one in (*code.get("earlier", ()), newest)]
