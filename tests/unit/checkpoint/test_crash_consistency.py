"""Whatever moment a crash chooses: the newest committed checkpoint is restored, whole, and nothing is lost."""

from __future__ import annotations

import random
import shutil
import tempfile
from pathlib import Path

import pytest

from support import crash_cycle
from support.crash_cycle import A, Check, facts_at, record, whole_life
from support.crashing import read_tree, write_tree

POWER_LOSSES_EACH = 3
"""States looked at for each boundary here; `python -m tests.soak crashes` looks at many more."""


@pytest.fixture
def memory(monkeypatch):
    """A folder where a sync costs nothing: what it would do is the model's to say."""
    crash_cycle.small_limits(monkeypatch)
    folder = Path(tempfile.mkdtemp(prefix="orch-crash-", dir="/dev/shm"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def life(memory):
    recorder = record(
        memory,
        lambda life, recorder: whole_life(
            life, lambda path, data: recorder.spoil(f"{crash_cycle.ROOT}/{path}", data)
        ),
    )
    recorder.assert_complete()
    return recorder


def test_a_kill_at_any_boundary(life, memory):
    check = Check(memory / "check")
    for count in range(len(life.ops) + 1):
        check(life.model(count).visible(), facts_at(life, count), f"killed before operation {count}")
    assert check.looked_at > 100


def test_a_power_loss_at_any_boundary(life, memory, seed):
    rng = random.Random(seed)
    check = Check(memory / "check")
    for count in range(len(life.ops) + 1):
        for tree in life.model(count).after_power_loss(rng, POWER_LOSSES_EACH):
            check(tree, facts_at(life, count), f"power lost before operation {count} (seed {seed})")
    assert check.looked_at > 100


def two_saves_and_a_retention(life, recorder):
    life.begin(A)
    life.save(A, 10)
    life.save(A, 20)
    life.save(A, 30)
    life.retain((A, 10))


def test_a_power_loss_after_the_next_agent_has_taken_over_what_a_kill_left(memory, seed):
    """What a killed writer left visible is not yet safe: who counts on it must make it so."""
    rng = random.Random(seed)
    first = record(memory, two_saves_and_a_retention)
    check = Check(memory / "check")
    for count in range(len(first.ops) + 1):
        model = first.model(count)
        shutil.rmtree(memory / "recorded")
        write_tree(model.visible(), memory / "recorded")
        facts = facts_at(first, count)
        step = next((step for step in (10, 20, 30) if (A, step) not in facts.committed), 30)

        def take_over(life, recorder, step=step):
            life.begin(A)
            life.save(A, step)
            life.retain((A, 10), (A, 20))
            life.sweep()

        then = record(memory, take_over)
        for op in then.ops:
            model.apply(op)
        assert model.visible() == read_tree(memory / "recorded")
        facts.committed.add((A, step))
        facts.released |= {(A, 10)} if step == 30 else set()
        for tree in model.after_power_loss(rng, POWER_LOSSES_EACH):
            check(
                tree, facts, f"killed before operation {count}, power lost after the next save (seed {seed})"
            )
