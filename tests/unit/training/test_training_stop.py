"""Early stopping: by a metric of the run itself, the best saved, and the same after a restart."""

from __future__ import annotations

import numpy as np
import pytest

from orch_workers.training.stopping import EarlyStop
from unit.training.harness import begin, saves

RULES = {"first": False, "last": True, "stop": ["val_loss", "min", 2]}
LOSSES = [0.9, 0.5, 0.6, 0.4, 0.45, 0.41, 0.1, 0.1]
"""The best so far at the 1st, 2nd and 4th evaluation; over after the 6th."""


def train(run, until=99):
    """An evaluation at every second step; returns the epochs that were begun."""
    begun = []
    for epoch in run.epochs(len(LOSSES)):
        begun.append(epoch)
        for batch in run.batches([1, 2]):
            run.step(loss=1.0, **({"val_loss": LOSSES[epoch]} if batch == 2 else {}))
            if run.step_count == until:
                run.give_up()
                return begun
    run.finish()
    return begun


def test_it_ends_at_the_end_of_the_epoch_with_success_and_has_saved_each_best(agents, monkeypatch):
    agent = agents(rules=RULES)
    assert train(begin(agent, monkeypatch, weights=np.zeros(2))) == [0, 1, 2, 3, 4, 5]
    assert saves(agent) == [(2, "demand"), (4, "demand"), (8, "demand"), (12, "last")]
    assert len(agent.of("finished")) == 1
    sentence = "stopped early: val_loss was best at step 8: 0.4, and 2 evaluations since were no better"
    assert sentence in [one["message"] for one in agent.of("note")]


@pytest.mark.parametrize("killed_at", [3, 9, 10, 11, 12])
def test_a_restart_decides_as_the_run_would_have_that_was_not_killed(agents, monkeypatch, killed_at):
    agent = agents(rules={**RULES, "steps": 1})
    train(begin(agent, monkeypatch, weights=np.zeros(2)), until=killed_at)
    run = begin(agent, monkeypatch, weights=np.zeros(2))
    train(run)
    assert run.step_count == 12
    assert len(agent.of("finished")) == 1


def test_a_loop_of_the_script_s_own_ends_at_its_next_step(agents, monkeypatch):
    agent = agents(rules={**RULES, "stop": ["accuracy", "max", 1]})
    run = begin(agent, monkeypatch, weights=np.zeros(2))
    for accuracy in (0.1, 0.2, 0.2):
        run.step(accuracy=accuracy)
    with pytest.raises(SystemExit) as left:
        run.step(accuracy=0.9)
    assert left.value.code == 0
    assert run.step_count == 3
    assert len(agent.of("finished")) == 1
    assert saves(agent) == [(1, "demand"), (2, "demand"), (3, "last")]


def test_what_is_not_finite_is_never_better():
    notes = []
    stop = EarlyStop(("loss", "min", 2), lambda level, message: notes.append(message))
    assert [stop.look(step, {"loss": value}) for step, value in enumerate((np.nan, -np.inf, 1.0), 1)] == [
        False,
        False,
        True,
    ]
    assert notes == ["stopped early: loss was never a finite number, and 2 evaluations since were no better"]


def test_a_rule_for_another_metric_begins_anew():
    stop = EarlyStop(("loss", "min", 2), lambda *_: None)
    stop.load({"metric": "error", "best": 1.0, "best_step": 3, "waited": 2})
    assert (stop.best, stop.is_over) == (None, False)
