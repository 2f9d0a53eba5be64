"""Thousands of seeded schedules. A seed that fails prints itself and the story of its jobs.

`ORCH_SIMULATION_SEEDS=100000` runs more; `ORCH_SIMULATION_SEED=4711` runs one. A million, with a count of how far it
is: `python -m simulation 1000000` in the folder tests/.
"""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from orch.control import lifecycle, lifecycle_common, lifecycle_late, lifecycle_placing, lifecycle_running
from orch.control.lifecycle_common import Step
from orch.model.commands import RemoveGang
from orch.model.events import StopOverdue
from orch.model.states import State
from orch_policies import goodput, restart
from orch_workers.checkpoint.chain import Chain
from simulation.world import World

BATCHES = 10
SEEDS = int(os.environ.get("ORCH_SIMULATION_SEEDS", "2000"))
ONE_SEED = os.environ.get("ORCH_SIMULATION_SEED")
TEETH_SEEDS = 150
TEETH_SEEDS_MAX = 3000
"""Where a mistake shows only in rare schedules: the first that shows it ends the search."""


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


def restoring_from_off_the_chain(monkeypatch):
    monkeypatch.setattr(Chain, "admits", lambda self, generation, step: True)


def forgetting_the_ancestors(monkeypatch):
    monkeypatch.setattr(Chain, "fork", lambda self, generation, *parent: Chain.root(generation))


def letting_failures_pay_for_all(monkeypatch):
    monkeypatch.setattr(restart, "_budget_of", lambda kind: "failures")


def ignoring_what_stops_a_job(monkeypatch):
    monkeypatch.setattr(restart, "_hopeless", lambda *arguments: "")


def booking_time_twice(monkeypatch):
    def moved(books, source, target, span_us):
        return replace(books, us={**books.us, target: books.us.get(target, 0) + span_us})

    monkeypatch.setattr(goodput, "_moved", moved)


def waiting_for_ever(monkeypatch):
    """What hangs when it is told to stop is never ended."""
    table = {
        key: transition._replace(rule=lambda job, *rest: Step(job), to=frozenset({key[0]}))
        if key[1] is StopOverdue
        else transition
        for key, transition in lifecycle.TRANSITIONS.items()
    }
    monkeypatch.setattr(lifecycle, "TRANSITIONS", table)


MISTAKES = {
    "one live generation per job": [without_fencing, forgetting_the_agents_that_never_came],
    "no restore from off the chain": [restoring_from_off_the_chain],
    "no checkpoint on the chain lost": [forgetting_the_ancestors],
    "budgets right": [charging_twice, letting_failures_pay_for_all, ignoring_what_stops_a_job],
    "every resource given back": [over_before_it_is_seen],
    "every job ends, and as it really ended": [waiting_for_ever, success_without_an_end],
    "the books sum to the job's age": [booking_time_twice],
}
"""The invariants of DESIGN section 8 (and of goodput), each with deliberate breakages of the code that keeps it."""


@pytest.mark.parametrize(
    "mistake", [pytest.param(one, id=one.__name__) for several in MISTAKES.values() for one in several]
)
def test_the_simulation_finds(mistake, monkeypatch):
    """A simulation that never fails proves nothing: each of these mistakes must be found, with its seed and story."""
    mistake(monkeypatch)
    with pytest.raises(AssertionError, match="seed ") as caught:
        run_all(range(TEETH_SEEDS_MAX))
    assert "job-0" in str(caught.value)
    assert "TurnCame(" in str(caught.value)


def test_a_seed_that_fails_fails_again(monkeypatch):
    """With the same story: who looks for the mistake sees what the run saw."""
    charging_twice(monkeypatch)
    stories = []
    for _ in range(2):
        with pytest.raises(AssertionError, match="seed ") as caught:
            run_all(range(TEETH_SEEDS))
        stories.append(str(caught.value))
    assert stories[0] == stories[1]


def test_everything_that_can_go_wrong_goes_wrong_somewhere():
    """Else a kind that the model has and no schedule meets would prove nothing."""
    met = set()
    for seed in range(TEETH_SEEDS):
        world = World(seed)
        world.run()
        met |= world.met
    assert met >= {
        "hang",
        "bad_numbers",
        "process_exit",
        "damaged",
        "preempted",
        "node_lost",
        "agent_lost",
        "asked",
    }
