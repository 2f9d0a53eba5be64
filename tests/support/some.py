"""Some of what a part of the soak would do, where `--only` names them."""

from __future__ import annotations

import os
from collections.abc import Iterable

VARIABLE = "ORCH_SOAK_ONLY"


def only(names: Iterable[str]) -> list[str]:
    """Those that were asked for, or all; AssertionError for one that there is not."""
    known = list(names)
    asked = [name for name in os.environ.get(VARIABLE, "").split(",") if name]
    unknown = set(asked) - set(known)
    assert not unknown, f"{sorted(unknown)}: there are {', '.join(known)}"
    return asked or known
