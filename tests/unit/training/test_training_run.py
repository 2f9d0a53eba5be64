"""When a run saves, how it leaves, and what it says to its agent."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from harness import begin, saves

from orch_workers.training.errors import RefusedError, TrainingError
from orch_workers.training.protocol import EXIT_LEFT


def steps(run, count, epochs=1):
    for _epoch in run.epochs(epochs):
        for _batch in run.batches([0.0] * count):
            run.step()


# when it saves


def test_the_first_step_and_the_last_are_saved(agents, monkeypatch):
    agent = agents()
    run = begin(agent, monkeypatch)
    steps(run, 4, epochs=2)
    run.finish()
    assert saves(agent) == [(1, "first"), (8, "last")]
    assert [(message["step"], message["epoch"]) for message in agent.of("finished")] == [(8, 2)]


def test_steps_and_epochs_whichever_comes_first(agents, monkeypatch):
    agent = agents(rules={"steps": 3, "epochs": 2, "first": False, "last": False})
    run = begin(agent, monkeypatch)
    steps(run, 4, epochs=4)
    run.finish()
    assert saves(agent) == [
        (3, "steps"),
        (6, "steps"),
        (8, "epochs"),
        (9, "steps"),
        (12, "steps"),
        (15, "steps"),
        (16, "epochs"),
    ]


def test_the_agent_asks_for_a_step(agents, monkeypatch):
    agent = agents(rules={"first": False, "last": False})
    run = begin(agent, monkeypatch)
    agent.say(save_at=3)
    steps(run, 5)
    agent.say(save_at=2)  # has passed: the next one
    steps(run, 5, epochs=2)
    run.finish()
    assert saves(agent) == [(3, "asked"), (6, "asked")]
    assert agent.page.read_progress()[:1] + agent.page.read_progress()[3:] == (10, 2, 6)


def test_on_demand_at_the_end_of_the_body_and_at_once_in_an_own_loop(agents, monkeypatch):
    agent = agents(rules={"first": False, "last": False})
    run = begin(agent, monkeypatch)
    for _epoch in run.epochs(1):
        for number in run.batches(range(5)):
            if number == 1:
                run.save()
            run.step()
            if number == 3:
                run.save()
                run.save()
    run.step()
    run.save()
    run.finish()
    assert saves(agent) == [(2, "demand"), (4, "demand"), (6, "demand")]


def test_a_busy_agent_skips_and_counts(agents, monkeypatch):
    agent = agents(rules={"steps": 1, "first": False, "last": False})
    agent.busy = True
    run = begin(agent, monkeypatch)
    steps(run, 3)
    assert run.skipped_saves == 3
    agent.busy = False
    run.step()
    run.finish()
    assert saves(agent) == [(4, "steps")]
    assert [message["wait"] for message in agent.of("save")] == [False] * 4


def test_what_must_not_be_skipped_waits(agents, monkeypatch):
    agent = agents(rules={"first": False})
    run = begin(agent, monkeypatch)
    agent.say(save_at=1)
    steps(run, 3)
    run.finish()
    assert [(message["reason"], message["wait"]) for message in agent.of("save")] == [
        ("asked", True),
        ("last", True),
    ]


def test_a_step_with_nothing_due_says_nothing_to_the_agent(agents, monkeypatch):
    agent = agents(rules={"first": False})
    run = begin(agent, monkeypatch)
    agent.say(save_at=1)
    run.step()
    slot_asked = len(agent.of("save"))
    told = []
    monkeypatch.setattr(type(run._sink._connection), "tell", lambda *message: told.append(message))
    monkeypatch.setattr(type(run._sink._connection), "offer", lambda *message: told.append(message))
    for _ in range(100):
        run.step()
    assert (told, slot_asked) == ([], 1)
    run.give_up()


# leaving


def test_told_to_stop_it_saves_and_leaves(agents, monkeypatch):
    agent = agents(rules={"first": False})
    run = begin(agent, monkeypatch)

    def train():
        for _epoch in run.epochs(1):
            for number in run.batches(range(9)):
                if number == 4:
                    assert not run.should_stop
                    agent.say(stop=True)
                    assert run.should_stop
                run.step()

    with pytest.raises(SystemExit) as left:
        train()
    assert left.value.code == EXIT_LEFT
    assert saves(agent) == [(5, "stop")]
    assert agent.of("finished") == []
    with pytest.raises(TrainingError, match="has left"):
        run.step()


def test_a_stop_names_the_step_that_all_save(agents, monkeypatch):
    agent = agents(rules={"first": False})
    run = begin(agent, monkeypatch)
    agent.say(save_at=4, stop=True)
    with pytest.raises(SystemExit):
        steps(run, 9)
    assert saves(agent) == [(4, "asked")]


def test_without_a_free_slot_it_leaves_all_the_same_and_says_so(agents, monkeypatch):
    agent = agents(rules={"first": False})
    agent.busy = True
    run = begin(agent, monkeypatch)
    agent.say(stop=True)
    with pytest.raises(SystemExit):
        run.step()
    agent.wait_idle()
    assert ["without saving" in note["message"] for note in agent.of("note")] == [True]


def test_a_signal_leaves_with_its_own_status(agents, monkeypatch):
    run = begin(agents(), monkeypatch)
    run.ask_to_stop(130)
    with pytest.raises(SystemExit) as left:
        run.step()
    assert left.value.code == 130


def test_a_failed_run_is_not_finished(agents, monkeypatch):
    agent = agents()
    run = begin(agent, monkeypatch)
    run.give_up()
    run.finish()
    agent.wait_idle()
    assert agent.of("finished") == []


@pytest.mark.parametrize("value", ["text", [1.0], torch.zeros(2), np.zeros(3), None])
def test_a_metric_is_a_number(agents, monkeypatch, value):
    run = begin(agents(), monkeypatch)
    with pytest.raises(TypeError, match=r"run.step\(loss=…\)"):
        run.step(loss=value)
    run.give_up()


def test_a_second_process_of_a_worker_is_refused(agents, monkeypatch):
    agent = agents()
    run = begin(agent, monkeypatch)
    agent.wait_idle = lambda: None
    with pytest.raises(RefusedError, match="another process of this worker"):
        begin(agent, monkeypatch)
    del agent.wait_idle
    run.give_up()


@pytest.mark.parametrize(
    ("option", "value"), [("skip", "jump"), ("local_every_s", 0), ("local_every_s", float("nan"))]
)
def test_options_are_checked(agents, monkeypatch, option, value):
    with pytest.raises(ValueError, match=option):
        begin(agents(), monkeypatch, **{option: value})


def test_metrics_are_reported(agents, monkeypatch):
    agent = agents()
    run = begin(agent, monkeypatch)
    run.step(loss=torch.tensor(0.25), count=3, big=float("inf"), array=np.float32(2))
    run.finish()
    agent.wait_idle()
    values = {"loss": 0.25, "count": 3, "big": "inf", "array": 2.0}
    assert {"type": "metrics", "step": 1, "epoch": 0, "values": values} in agent.messages
