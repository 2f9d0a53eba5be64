"""A loss that is no number is told at once, with its step; after a rollback the bad stretch's data is left out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from harness import begin

NO_SAVES = {"first": False, "last": False}


@pytest.mark.parametrize("bad", [math.nan, math.inf, torch.tensor(math.nan), np.float32("-inf")])
def test_the_first_bad_loss_is_told_with_its_own_step(agents, monkeypatch, bad):
    """Reports come twice a second, far fewer than steps; this one does not wait."""
    agent = agents(rules=NO_SAVES)
    run = begin(agent, monkeypatch)
    for step in range(1, 50):
        run.step(loss=bad if step >= 30 else torch.tensor(0.5), accuracy=0.1)
    run.give_up()
    agent.wait_idle()
    told = [(one["step"], one["values"]["loss"]) for one in agent.of("metrics")]
    assert next(step for step, loss in told if loss in ("nan", "inf", "-inf")) == 30
    assert len(told) < 10, "not every step is told from then on"


def test_a_metric_of_another_name_may_be_infinite(agents, monkeypatch):
    agent = agents(rules=NO_SAVES)
    run = begin(agent, monkeypatch)
    for _ in range(20):
        run.step(loss=0.5, perplexity=math.inf)
    run.give_up()
    agent.wait_idle()
    assert [one["step"] for one in agent.of("metrics")] == [1]


def seen(run, epochs, per_step=1, **loaders):
    """Batches by epoch that the script is given; a step after every `per_step` of them."""
    found = []
    for epoch in run.epochs(epochs):
        for batch in run.batches(loaders["train"]):
            found.append((epoch, batch))
            if (run.batch + 1) % per_step == 0:
                run.step()
        found += [(epoch, batch) for batch in run.batches(loaders.get("check", []))]
    return found


def saved_at(agents, monkeypatch, step, **more):
    agent = agents(rules=NO_SAVES)
    run = begin(agent, monkeypatch)
    agent.say(save_at=step)
    seen(run, 1, **more)
    run.give_up()
    agent.wait_idle()
    assert list(agent.snapshots) == [step]
    return agent


def test_the_data_of_the_bad_stretch_is_left_out(agents, monkeypatch):
    train = list(range(10))
    agent = saved_at(agents, monkeypatch, 3, train=train)
    agent.skip = 4
    run = begin(agent, monkeypatch)
    assert [batch for _, batch in seen(run, 1, train=train)] == [7, 8, 9]
    assert run.step_count == 6
    assert not run.exact
    assert "rolled back to step 3, and the data of 4 steps left out" in run.inexact_reasons[0]
    run.give_up()


def test_it_may_reach_into_the_next_epoch_and_touches_no_other_loader(agents, monkeypatch):
    train = list(range(5))
    agent = saved_at(agents, monkeypatch, 3, train=train)
    agent.skip = 4
    run = begin(agent, monkeypatch)
    found = seen(run, 2, train=train, check=["check"])
    assert found == [(0, "check"), (1, 2), (1, 3), (1, 4), (1, "check")]
    run.give_up()


def test_as_many_batches_a_step_as_there_were_before(agents, monkeypatch):
    """Gradients that are accumulated over two batches."""
    train = list(range(10))
    agent = saved_at(agents, monkeypatch, 2, train=train, per_step=2)
    agent.skip = 1
    run = begin(agent, monkeypatch)
    assert [batch for _, batch in seen(run, 1, train=train, per_step=2)] == [6, 7, 8, 9]
    run.give_up()
