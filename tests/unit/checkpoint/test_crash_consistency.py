"""Whatever moment a crash chooses: the newest committed checkpoint is restored, whole, and nothing is lost."""

from __future__ import annotations

import random
import shutil
import tempfile
from pathlib import Path

import pytest

from support import crash_cycle
from support.crash_cycle import (
    Check,
    facts_at,
    killed,
    power_loss_after_take_over,
    record,
    two_saves_and_a_retention,
    whole_life,
)
from support.crashing import read_tree

BOUNDARIES = 40
"""So many of them, another choice in every run; every kill of the whole life is looked at all the same, and
`python -m tests.soak crashes` looks at every boundary, and at more of what a power loss may leave there.
"""
NAMING = {"link", "unlink", "mkdir", "rmdir"}
"""Between two of them a kill leaves the same names."""


@pytest.fixture
def memory(monkeypatch):
    """A folder where a sync costs nothing: what it would do is the model's to say."""
    crash_cycle.small_limits(monkeypatch)
    folder = Path(tempfile.mkdtemp(prefix="orch-crash-", dir="/dev/shm"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def life(memory):
    recorder = record(memory, lambda life, recorder: whole_life(life, recorder.spoil))
    recorder.assert_complete()
    return recorder


def some(rng, count, limit=BOUNDARIES):
    return sorted(rng.sample(range(count + 1), min(limit, count + 1)))


def test_a_kill_at_any_boundary(life, memory):
    check = Check(memory / "check")
    for count, model in life.models():
        check(model.visible(), facts_at(life.marks, count), f"killed before operation {count}")
    assert check.looked_at > 100


def test_a_power_loss_at_any_boundary(life, memory, seed):
    rng = random.Random(seed)
    check = Check(memory / "check")
    chosen = set(some(rng, len(life.ops)))
    for count, model in life.models():
        for tree in model.after_power_loss(rng, 2) if count in chosen else ():
            check(tree, facts_at(life.marks, count), f"power lost before operation {count} (seed {seed})")
    assert check.looked_at > BOUNDARIES / 2


def test_a_power_loss_after_the_next_agent_has_taken_over_what_a_kill_left(memory, seed):
    """What a killed writer left visible is not yet safe: who counts on it must make it so."""
    rng = random.Random(seed)
    first = record(memory, two_saves_and_a_retention)
    check = Check(memory / "check")
    for count in [0, *(at for at, op in enumerate(first.ops, 1) if op.kind in NAMING)]:
        power_loss_after_take_over(first, count, memory, rng, check, 2)


def test_a_process_that_is_killed_at_a_boundary(memory, seed):
    """By SIGKILL, and no model: what it leaves is what the disk has."""
    rng = random.Random(seed)
    operations = len(record(memory, two_saves_and_a_retention).ops)
    check = Check(memory / "check")
    for at in some(rng, operations - 1, BOUNDARIES // 2):
        shutil.rmtree(memory / "recorded")
        facts = killed(memory, two_saves_and_a_retention, at)
        check(read_tree(memory / "recorded"), facts, f"SIGKILL before operation {at} (seed {seed})")
    shutil.rmtree(memory / "recorded")
    assert killed(memory, two_saves_and_a_retention, operations + 50) is None
