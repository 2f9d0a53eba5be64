"""What a script left behind when it was killed: may it be taken? And did a start die of what it was given?"""

from __future__ import annotations

import pytest

from orch_workers.files.fallback import Start, falls_back
from orch_workers.files.formats import Examined
from orch_workers.files.judging import BURSTS_MIN, why_not
from orch_workers.files.matching import Signature
from orch_workers.prepared import Prepared

KINDS = {
    ".pt": "torch",
    ".txt": "",
    ".index": "tensorflow",
    ".data": "tensorflow",
    "checkpoint": "tensorflow",
}


def reason(before, now, *, well=False, was_settled=False, single_bursts=0):
    """Files as {name: version of its content}."""
    ours, theirs = (
        {name: Signature(size_bytes=size) for name, size in files.items()} for files in (before, now)
    )
    kinds = {name: next(kind for suffix, kind in KINDS.items() if name.endswith(suffix)) for name in now}
    found = {name: Examined(kind) for name, kind in kinds.items()}
    return why_not(found, ours, theirs, well=well, was_settled=was_settled, single_bursts=single_bursts)


TAKEN = {
    "a single file that opens": ({"a.pt": 1}, {"a.pt": 2}, {}),
    "the first single file": ({}, {"a.pt": 1}, {}),
    "an end that went well": ({"a.txt": 1, "b.pt": 1}, {"a.txt": 2, "b.pt": 1}, {"well": True}),
    "seen standing still": ({"a.txt": 1, "b.pt": 1}, {"a.txt": 2, "b.pt": 1}, {"was_settled": True}),
    "tensorflow, state file last": ({"checkpoint": 1}, {"checkpoint": 2, "c-2.index": 1, "c-2.data": 1}, {}),
    "always one file more": ({"1.pt": 1, "2.pt": 1}, {"2.pt": 1, "3.pt": 1}, {"single_bursts": BURSTS_MIN}),
}
LEFT = {
    "a single file that nobody knows": ({"a.txt": 1}, {"a.txt": 2}, {}),
    "one of several": ({"a.pt": 1, "b.pt": 1}, {"a.pt": 2, "b.pt": 1}, {}),
    "all of several": ({"a.pt": 1, "b.pt": 1}, {"a.pt": 2, "b.pt": 2}, {}),
    "tensorflow, state file not yet": (
        {"checkpoint": 1},
        {"checkpoint": 1, "c-2.index": 1, "c-2.data": 1},
        {},
    ),
    "one file more, once": ({"1.pt": 1}, {"1.pt": 1, "2.pt": 1}, {"single_bursts": BURSTS_MIN - 1}),
}


@pytest.mark.parametrize("case", TAKEN)
def test_taken(case):
    before, now, more = TAKEN[case]
    assert reason(before, now, **more) == ""


@pytest.mark.parametrize("case", LEFT)
def test_not_taken(case):
    before, now, more = LEFT[case]
    assert reason(before, now, **more)


GIVEN = Prepared("path", "disk", (1, 1), 3, 0)


@pytest.mark.parametrize(
    ("start", "code", "signal", "expected"),
    [
        (Start(GIVEN), 1, None, True),
        (Start(GIVEN), None, 11, True),
        (Start(GIVEN), 134, None, True),
        (Start(GIVEN), None, 9, False),
        (Start(GIVEN), 137, None, False),
        (Start(GIVEN), None, 15, False),
        (Start(GIVEN), 0, None, False),
        (Start(GIVEN, versions=1), 1, None, False),
        (Start(GIVEN, lines=1), 1, None, False),
        (Start(None), 1, None, False),
    ],
)
def test_which_deaths_accuse_the_file(start, code, signal, expected):
    assert falls_back(start, code, signal) is expected
