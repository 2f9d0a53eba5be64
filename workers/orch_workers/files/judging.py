"""What a script left behind when it ended: may it be taken as a version? Pure.

Nobody can ask a script that was killed whether it had finished. It had, as far as anybody can know, when the set was
seen to be settled while it lived; or when it ended well; or when what it changed last says itself that it is whole.
"""

from __future__ import annotations

from collections.abc import Mapping

from orch_workers.files.formats import Examined
from orch_workers.files.matching import Signature
from orch_workers.files.sets import STATE_FILE

Files = Mapping[str, Signature]

BURSTS_MIN = 2
"""Versions that were seen to change one file alone, before it is believed that they always do."""


def changed(before: Files, now: Files) -> list[str]:
    """Names of files that are new or have another content."""
    return sorted(name for name, signature in now.items() if before.get(name) != signature)


def why_not(
    found: Mapping[str, Examined],
    before: Files,
    now: Files,
    *,
    well: bool,
    was_settled: bool,
    single_bursts: int,
) -> str:
    """Why what is there now is not taken; "" when it may be. Each file opened as what it is, as far as that is known.

    `before`: the version before it. `well`: the script exited with code 0. `was_settled`: the set was seen just so
    while the script lived, and nobody wrote it. `single_bursts`: versions in a row in which it changed one file.
    """
    if well or was_settled:
        return ""
    names = changed(before, now)
    unknown = [name for name in names if not now[name].link and not found[name].is_known]
    if unknown:
        return f"{unknown[0]} was written last, and nothing in it says whether it is whole"
    if len(now) <= 1:
        return ""
    is_bundle = any(name.rpartition("/")[2] == STATE_FILE for name in names)
    if is_bundle and all(now[name].link or found[name].kind == "tensorflow" for name in names):
        return ""  # the state file is written last, and the checkpoint that it names is whole
    if len(names) == 1 and single_bursts >= BURSTS_MIN:
        return ""
    return f"{', '.join(names[:3])} changed last, and more may have been to follow"
