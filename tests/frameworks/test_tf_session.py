"""TensorFlow 1 style: sessions with orch's hook, and loops that save by themselves."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

import orch.tensorflow
from orch_workers.checkpoint import Checkpointer
from orch_workers.training import protocol
from orch_workers.training.errors import MismatchError, TrainingError

v1 = tf.compat.v1
STEPS = 40
POINTS = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")


class Killed(BaseException):
    pass


@pytest.fixture(autouse=True)
def _in_a_graph(runs):
    with tf.Graph().as_default():
        yield


def network(width=1, *, random=False):
    """A graph: the place for data, its loss, the training operation, the global step."""
    v1.set_random_seed(1)
    place = v1.placeholder(tf.float32, [None, 4])
    weight = v1.get_variable("weight", [4, width])
    wanted = tf.reduce_sum(place, 1, keepdims=True)
    noise = tf.random.normal([]) if random else 0.0
    loss = tf.reduce_mean((tf.matmul(place, weight) - wanted) ** 2) + noise
    step = v1.train.get_or_create_global_step()
    return place, loss, v1.train.AdamOptimizer(0.05).minimize(loss, global_step=step), step


def batch(place, step):
    return {place: POINTS[(step * 8) % 64 :][:8]}


def hooked(agent, monkeypatch, kill_at=None, **options):
    """One start of a script; the variables at its end."""
    agent.wait_idle()
    monkeypatch.setenv(protocol.ENV_SOCKET, agent.socket_path)
    with tf.Graph().as_default():
        place, loss, train, _ = network(**options)
        hook = orch.tensorflow.SessionHook(metrics={"loss": loss})
        ends, stop = [], v1.train.StopAtStepHook(last_step=STEPS)

        class Look(v1.train.SessionRunHook):
            def end(self, session):
                ends.extend(value.tobytes() for value in session.run(variables))

        try:
            variables = None
            with v1.train.MonitoredTrainingSession(hooks=[stop, hook, Look()]) as running:
                variables = v1.global_variables()
                while not running.should_stop():
                    running.run(train, batch(place, hook.run.step_count))
                    if hook.run.step_count == kill_at:
                        raise Killed
        except Killed:
            hook.run.give_up()
            return None
        return ends


def test_a_session_with_the_hook_goes_on_where_it_was_killed(agents, monkeypatch):
    expected = hooked(agents(), monkeypatch)
    assert len(expected) >= 4, "weight, its two slots, the global step"
    agent = agents(rules={"steps": 4})
    assert hooked(agent, monkeypatch, kill_at=6) is None
    assert hooked(agent, monkeypatch, kill_at=27) is None
    assert hooked(agent, monkeypatch) == expected
    agent.wait_idle()
    assert [message["step"] for message in agent.of("restored")] == [0, 4, 24]
    assert agent.of("finished")[-1]["step"] == STEPS
    assert [message["message"] for message in agent.of("note")] == []


def test_what_a_session_hides_is_said_with_its_operation(agents, monkeypatch):
    agent = agents()
    hooked(agent, monkeypatch, random=True)
    agent.wait_idle()
    assert "RandomStandardNormal" in agent.of("note")[0]["message"]


def test_a_graph_of_another_shape_is_refused(agents, monkeypatch):
    agent = agents()
    hooked(agent, monkeypatch)
    with pytest.raises(MismatchError, match=r"graph.weight has shape \[4, 1\] in the checkpoint, \(4, 2\)"):
        hooked(agent, monkeypatch, width=2)


def test_without_a_global_step_the_hook_says_what_to_do():
    v1.get_variable("weight", [1])
    with pytest.raises(TrainingError, match="get_or_create_global_step"):
        orch.tensorflow.SessionHook().begin()


def saving(kill_at=None, **options):
    """A loop that saves every ten steps; (where it began, the variables at its end)."""
    with tf.Graph().as_default():
        place, _, train, global_step = network()
        saver = orch.tensorflow.Saver(**options)
        with v1.Session() as running:
            running.run(v1.global_variables_initializer())
            start = saver.restore(running) or 0
            for step in range(start, STEPS):
                running.run(train, batch(place, step))
                if step + 1 == kill_at:
                    return start, None
                if (step + 1) % 10 == 0:
                    assert saver.save(running, global_step) == step + 1
            return start, [value.tobytes() for value in running.run(v1.global_variables())]


def test_a_loop_with_a_saver_by_hand(tmp_path, monkeypatch):
    monkeypatch.delenv(protocol.ENV_SOCKET, raising=False)
    _, expected = saving(folder=str(tmp_path / "calm"))
    folder = str(tmp_path / "saver")
    assert saving(25, folder=folder) == (0, None)
    assert saving(38, folder=folder) == (20, None)
    assert saving(folder=folder, max_to_keep=2) == (30, expected)
    with Checkpointer(folder) as kept:
        assert sorted(point.step for point in kept.list()) == [30, 40]
    network()
    saver = orch.tensorflow.Saver(folder=folder)
    with v1.Session() as running:
        assert saver.restore(running, step=30) == 30
        assert running.run(v1.train.get_global_step()) == 30


def test_a_loop_with_a_saver_under_orch(agents, runs, monkeypatch):
    agent = agents(rules={"first": False, "last": False})
    monkeypatch.setenv(protocol.ENV_SOCKET, agent.socket_path)
    assert saving(25) == (0, None)
    runs[-1].give_up()
    agent.wait_idle()
    start, _ = saving()
    assert start == 20
    runs[-1].finish()
    agent.wait_idle()
    assert [message["step"] for message in agent.of("saved")] == [10, 20, 30, 40]
