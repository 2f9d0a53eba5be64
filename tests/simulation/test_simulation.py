"""Thousands of seeded schedules. A seed that fails prints itself and the story of its jobs.

`ORCH_SIMULATION_SEEDS=100000` runs more; `ORCH_SIMULATION_SEED=4711` runs one.
"""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from orch.control import lifecycle, lifecycle_common, lifecycle_late, lifecycle_placing, lifecycle_running
from orch.control.lifecycle_common import Step
from orch.model.commands import RemoveGang
from orch.model.states import State
from simulation.world import World

BATCHES = 10
SEEDS = int(os.environ.get("ORCH_SIMULATION_SEEDS", "1000"))
ONE_SEED = os.environ.get("ORCH_SIMULATION_SEED")
TEETH_SEEDS = 150


def run_all(seeds):
    for seed in seeds:
        World(seed).run()


@pytest.mark.parametrize("batch", range(BATCHES))
def test_what_must_hold_holds_in_every_schedule(batch):
    run_all([int(ONE_SEED)] if ONE_SEED else range(batch, SEEDS, BATCHES))


def test_a_seed_gives_the_same_schedule_every_time():
    stories = []
    for _ in range(2):
        world = World(7)
        world.run()
        stories.append([job.to_dict() for job in world.controller.store.jobs.values()])
    assert stories[0] == stories[1]


def without_fencing(monkeypatch):
    monkeypatch.setattr(lifecycle_late, "_process", lambda job, event: None)
    monkeypatch.setattr(lifecycle_late, "_agent", lambda job, event: None)


def charging_twice(monkeypatch):
    real = lifecycle_common.merge_restart
    forgetful = lambda job, *rest: replace(real(job, *rest), merged=())  # noqa: E731
    monkeypatch.setattr(lifecycle_running, "merge_restart", forgetful)


def over_before_it_is_seen(monkeypatch):
    def requeued_at_once(job, *arguments, **named):
        step = lifecycle_common.requeued(job, *arguments, **named)
        kept = tuple(command for command in step.commands if not isinstance(command, RemoveGang))
        return Step(replace(step.job, removing=()), kept, step.decision)

    monkeypatch.setattr(lifecycle_placing, "requeued", requeued_at_once)


def forgetting_the_agents_that_never_came(monkeypatch):
    monkeypatch.setattr(lifecycle_running, "never_seen", lambda job, event: ())


def success_without_an_end(monkeypatch):
    real = lifecycle.ending.closed
    done = lambda job, *rest: real(replace(job, ending=replace(job.ending, state=State.SUCCEEDED)), *rest)  # noqa: E731
    table = dict(lifecycle.TRANSITIONS)
    for key, transition in table.items():
        if transition.rule is real:
            table[key] = transition._replace(rule=done)
    monkeypatch.setattr(lifecycle, "TRANSITIONS", table)


@pytest.mark.parametrize(
    "mistake",
    [
        without_fencing,
        charging_twice,
        over_before_it_is_seen,
        forgetting_the_agents_that_never_came,
        success_without_an_end,
    ],
)
def test_the_simulation_finds_a_lifecycle_with(mistake, monkeypatch):
    """A simulation that never fails proves nothing: each of these mistakes must be found."""
    mistake(monkeypatch)
    with pytest.raises(AssertionError, match="seed "):
        run_all(range(TEETH_SEEDS))
