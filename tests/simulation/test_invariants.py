"""Every sentence of `lifecycle_invariants` is said about some deliberate mistake in the rules.

`test_simulation.MISTAKES` breaks what a user relies on; here the state itself is broken, one invariant after the other.
"""

from __future__ import annotations

import ast
import inspect
from dataclasses import replace

import pytest

from orch.control import (
    lifecycle,
    lifecycle_common,
    lifecycle_ending,
    lifecycle_invariants,
    lifecycle_placing,
    lifecycle_resuming,
    lifecycle_running,
)
from orch.control.lifecycle_common import Step
from orch.model.generation import Generation
from orch.model.states import AgentState, Ending, State
from orch_policies import goodput, restart
from simulation.world import World

SEEDS_MAX = 3000


def _run_all():
    for seed in range(SEEDS_MAX):
        World(seed).run()


def after(monkeypatch, rule, change):
    """`rule`, wherever the table has it, with its job changed: `change(before, after)`."""

    def changed(job, event, now_us):
        step = rule(job, event, now_us)
        return step._replace(job=change(job, step.job))

    table = {
        key: transition._replace(rule=changed) if transition.rule is rule else transition
        for key, transition in lifecycle.TRANSITIONS.items()
    }
    monkeypatch.setattr(lifecycle, "TRANSITIONS", table)


def negative_restart(monkeypatch):
    after(monkeypatch, lifecycle_placing.turn_came, lambda _, job: replace(job, restart=-1))


def ended_before_it_began(monkeypatch):
    def change(_, job):
        return replace(job, down=Generation(job.attempt, job.restart + 1))

    after(monkeypatch, lifecycle_running.process_exited, change)


def one_rank_too_many(monkeypatch):
    def change(_, job):
        return replace(job, agents={**job.agents, job.workers: AgentState(placed=job.attempt)})

    after(monkeypatch, lifecycle_placing.gang_granted, change)


def placed_by_the_next_attempt(monkeypatch):
    def change(_, job):
        return replace(job, agents={rank: AgentState(placed=job.attempt + 1) for rank in job.agents})

    after(monkeypatch, lifecycle_placing.gang_granted, change)


def runs_the_next_generation(monkeypatch):
    def change(_, job):
        ahead = Generation(job.attempt, job.restart + 1)
        return replace(job, agents={rank: replace(one, started=ahead) for rank, one in job.agents.items()})

    after(monkeypatch, lifecycle_running.process_started, change)


def keeping(monkeypatch, *names):
    """Back in the queue, with these parts of its state as they were."""

    def requeued(job, *arguments, **named):
        step = lifecycle_common.requeued(job, *arguments, **named)
        return step._replace(job=replace(step.job, **{name: getattr(job, name) for name in names}))

    for module in (lifecycle_placing, lifecycle_running):
        monkeypatch.setattr(module, "requeued", requeued)


def keeping_the_gang_that_is_removed(monkeypatch):
    keeping(monkeypatch, "gang")


def keeping_the_agents(monkeypatch):
    keeping(monkeypatch, "agents")


def keeping_the_deadline(monkeypatch):
    keeping(monkeypatch, "stop_deadline_us")


def keeping_the_wish_to_begin_anew(monkeypatch):
    keeping(monkeypatch, "resuming")


def a_branch_of_a_later_attempt(monkeypatch):
    def change(_, job):
        later = None if job.branch is None else replace(job.branch, attempt=job.branch.attempt + 1)
        return replace(job, branch=later)

    after(monkeypatch, lifecycle_resuming.resume, change)


def forgetting_time(monkeypatch):
    real = lifecycle._told
    monkeypatch.setattr(lifecycle, "_told", lambda *args, **named: replace(real(*args, **named), spent_us={}))


def forgetting_the_books(monkeypatch):
    monkeypatch.setattr(goodput, "passed", lambda books, state, span_us: books)


def over_and_ending(monkeypatch):
    after(monkeypatch, lifecycle_ending.closed, lambda before, job: replace(job, ending=before.ending))


def over_and_closing(monkeypatch):
    after(monkeypatch, lifecycle_ending.closed, lambda _, job: replace(job, closing=True))


def over_without_a_time(monkeypatch):
    after(monkeypatch, lifecycle_ending.closed, lambda _, job: replace(job, ended_us=None))


def over_and_holding(monkeypatch):
    def change(before, job):
        return replace(job, gang=before.gang, removing=before.removing)

    after(monkeypatch, lifecycle_ending.closed, change)


def stopping_without_an_end(monkeypatch):
    after(monkeypatch, lifecycle_ending.cancel_placed, lambda _, job: replace(job, ending=None))


def an_end_before_it_stops(monkeypatch):
    end = Ending(state=State.FAILED, reason="a mistake")
    after(monkeypatch, lifecycle_running.process_exited, lambda _, job: replace(job, ending=end))


def placed_without_a_grant(monkeypatch):
    after(monkeypatch, lifecycle_placing.gang_granted, lambda _, job: replace(job, gang_granted=False))


def placed_without_a_rank(monkeypatch):
    after(monkeypatch, lifecycle_placing.gang_granted, lambda _, job: replace(job, agents={}))


def nobody_is_placed_again(monkeypatch):
    monkeypatch.setattr(
        lifecycle_running, "_replace_agents", lambda job, _ranks, reason: Step(job, (), reason)
    )


def giving_back_what_was_never_charged(monkeypatch):
    real = restart.committed

    def committed(charges, history, step):
        paid, lived = real(charges, history, step)
        return replace(paid, failures=paid.failures - 1), lived

    monkeypatch.setattr(restart, "committed", committed)


BROKEN = {
    "negative attempt or restart": [negative_restart],
    "a generation ended that was never started": [ended_before_it_began],
    "an agent of rank ": [one_rank_too_many],
    " was placed by an attempt to come": [placed_by_the_next_attempt],
    " runs a generation to come": [runs_the_next_generation],
    " is of an attempt to come, or being removed": [keeping_the_gang_that_is_removed],
    "the times in the states do not sum to the job's age": [forgetting_time],
    "the books do not sum to the job's age: ": [forgetting_the_books],
    "an end that is decided belongs to STOPPING, and to it alone": [
        over_and_ending,
        stopping_without_an_end,
        an_end_before_it_stops,
    ],
    "asked to stop, and nobody is there": [keeping_the_deadline],
    "leaves to begin anew, and has no place": [keeping_the_wish_to_begin_anew],
    "a branch of an attempt that nobody asked for": [a_branch_of_a_later_attempt],
    "closing without stopping": [over_and_closing],
    "the time of the end belongs to an end": [over_without_a_time],
    "placed without a gang of its own alone": [placed_without_a_grant],
    "placed, and not every rank has an agent": [placed_without_a_rank],
    "placed, and nobody is alive": [nobody_is_placed_again],
    "queued with agents or a granted gang": [keeping_the_agents],
    "over, and still holding something": [over_and_holding],
    " charged to ": [giving_back_what_was_never_charged],
}
"""What `validate` says → the mistakes that it must say it about."""


@pytest.mark.parametrize(
    ("said", "mistake"),
    [pytest.param(said, one, id=one.__name__) for said, several in BROKEN.items() for one in several],
)
def test_the_invariant_is_seen_to_be_broken(said, mistake, monkeypatch):
    mistake(monkeypatch)
    with pytest.raises(AssertionError, match="seed ") as caught:
        _run_all()
    assert said in str(caught.value).partition("\n")[0]


def test_every_invariant_is_broken_here():
    """The longest piece of text of each sentence that `validate` can say."""
    tree = ast.parse(inspect.getsource(lifecycle_invariants))
    sentences = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Yield):
            texts = [one.value for one in ast.walk(node) if isinstance(one, ast.Constant)]
            sentences.add(max((text for text in texts if isinstance(text, str)), key=len))
    assert sentences == BROKEN.keys()
