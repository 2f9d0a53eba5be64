"""TensorFlow objects as arguments of orch.training(): what is kept, what comes back, and what is said."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from orch_workers.training.errors import MismatchError, UnsupportedStateError
from support.server import wait_for
from unit.training.harness import saved


class Pair(tf.Module):
    """Makes its second variable when it is first called."""

    def __init__(self):
        super().__init__()
        self.first = tf.Variable([1.0, 2.0])
        self.later = None

    def __call__(self):
        if self.later is None:
            self.later = tf.Variable([3.0, 4.0])
        return self.first + self.later


class Net(keras.Model):
    def __init__(self, width=4):
        super().__init__()
        self.inner = keras.layers.Dense(width, activation="relu")
        self.drop = keras.layers.Dropout(0.5)
        self.outer = keras.layers.Dense(1)

    def call(self, x, training=False):
        return self.outer(self.drop(self.inner(x), training=training))


def train(net, optimizer, steps=2):
    @tf.function
    def step(x):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(net(x, training=True) ** 2)
        variables = net.trainable_variables
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        return loss

    for number in range(steps):
        step(tf.fill([3, 2], float(number + 1)))


def values(*objects):
    return [v.numpy().tobytes() for one in objects for v in one.variables]


def test_variables_of_every_kind_come_back(agents, begin):
    agent = agents()

    def objects():
        table = tf.lookup.experimental.MutableHashTable(tf.string, tf.int64, -1)
        return {
            "number": tf.Variable(0, dtype=tf.int64),
            "half": tf.Variable(tf.zeros([3], tf.bfloat16)),
            "empty": tf.Variable(tf.zeros([0, 2])),
            "words": tf.Variable(["", ""]),
            "flags": tf.Variable([False, False]),
            "complex": tf.Variable(tf.zeros([2], tf.complex64)),
            "generator": tf.random.Generator.from_seed(1),
            "table": table,
            "some": [tf.Variable(0.0), {"deep": (tf.Variable(0.0),)}],
            "metric": keras.metrics.Mean(),
        }

    live = objects()
    live["number"].assign(1 << 40)
    live["half"].assign([0.5, 1.5, -2.0])
    live["words"].assign(["a", "bä"])
    live["flags"].assign([True, False])
    live["complex"].assign([1 + 2j, 3j])
    live["generator"].normal([5])
    live["table"].insert(["x", "y"], [7, 8])
    live["some"][0].assign(4.0)
    live["some"][1]["deep"][0].assign(5.0)
    live["metric"].update_state([2.0, 4.0])
    saved(begin(agent, **live))

    found = objects()
    run = begin(agent, **found)
    run.give_up()
    for name in ("number", "half", "words", "flags", "complex"):
        assert np.array_equal(found[name].numpy(), live[name].numpy()), name
    assert found["half"].dtype == tf.bfloat16
    assert np.array_equal(found["generator"].normal([3]), live["generator"].normal([3]))
    assert found["table"].lookup(tf.constant(["x", "y", "z"])).numpy().tolist() == [7, 8, -1]
    assert (found["some"][0].numpy(), found["some"][1]["deep"][0].numpy()) == (4.0, 5.0)
    assert found["metric"].result().numpy() == 3.0
    assert run.exact


def test_a_network_that_does_not_exist_yet_takes_its_state_when_it_comes_to_be(agents, begin):
    agent = agents()
    keras.utils.set_random_seed(1)
    net, optimizer = Net(), keras.optimizers.Adam(0.1)
    run = begin(agent, net=net, optimizer=optimizer)
    train(net, optimizer)
    saved(run)
    train(net, optimizer, 1)

    keras.utils.set_random_seed(2)
    again, other = Net(), keras.optimizers.Adam(0.1)
    run = begin(agent, net=again, optimizer=other)
    assert not again.inner.built
    train(again, other, 1)
    run.step()
    assert values(again, other) == values(net, optimizer), (
        "restored before its first use, inside the first call"
    )
    run.give_up()
    agent.wait_idle()
    assert [note["message"] for note in agent.of("note")] == []


def test_a_restored_network_goes_on_as_the_one_that_was_saved(agents, begin):
    agent = agents()
    keras.utils.set_random_seed(1)
    net, optimizer = Net(), keras.optimizers.Adam(0.1)
    run = begin(agent, net=net, optimizer=optimizer)
    train(net, optimizer)
    saved(run)
    there = values(net, optimizer)
    train(net, optimizer, 3)

    keras.utils.set_random_seed(2)
    again, other = Net(), keras.optimizers.Adam(0.1)
    run = begin(agent, net=again, optimizer=other)
    again(tf.zeros([1, 2]))
    other.build(again.trainable_variables)
    assert values(again, other) == there
    train(again, other, 3)
    assert values(again, other) == values(net, optimizer), "dropout draws on from where it was"
    run.give_up()


def test_a_module_of_plain_tensorflow_waits_too(agents, begin):
    agent = agents()
    pair_saved(begin, agent, first=[5.0, 6.0], later=[7.0, 8.0])
    again = Pair()
    run = begin(agent, pair=again)
    assert again().numpy().tolist() == [12.0, 14.0]
    run.give_up()


def pair_saved(begin, agent, **values):
    """A Pair with these values, saved by a run of its own."""
    pair = Pair()
    pair()
    for name, value in values.items():
        getattr(pair, name).assign(value)
    saved(begin(agent, pair=pair))


def test_what_has_found_no_object_is_said_and_goes_on_into_the_next_checkpoints(agents, begin):
    agent = agents()
    pair_saved(begin, agent, later=[7.0, 8.0])

    unused = Pair()
    run = begin(agent, pair=unused)
    run.step()
    wait_for("it is said", lambda: agent.of("note"), 10.0)
    [note] = [note["message"] for note in agent.of("note")]
    assert "pair.later" in note
    assert "nothing in this script has taken" in note
    unused.first.assign([9.0, 9.0])
    run.save()
    run.give_up()

    third = Pair()
    run = begin(agent, pair=third)
    assert third.first.numpy().tolist() == [9.0, 9.0]
    assert third().numpy().tolist() == [16.0, 17.0]
    run.give_up()


def test_strict_ends_the_run_that_leaves_something_unmatched(agents, begin):
    agent = agents()
    pair = Pair()
    pair()
    saved(begin(agent, pair=pair))
    run = begin(agent, pair=Pair(), strict=True)
    with pytest.raises(MismatchError, match=r"pair\.later"):
        run.step()
    run.give_up()
    agent.wait_idle()
    assert "pair.later" in agent.of("mismatch")[0]["message"]

    whole = Pair()
    run = begin(agent, pair=whole, strict=True)
    whole()
    run.step()
    run.give_up()


def test_a_variable_that_the_checkpoint_lacks_is_said(agents, begin):
    agent = agents()
    saved(begin(agent, both=[tf.Variable(1.0)]))
    run = begin(agent, both=[tf.Variable(2.0), tf.Variable(3.0)])
    run.step()
    run.give_up()
    agent.wait_idle()
    assert "has nothing for both.1" in agent.of("note")[0]["message"]


def test_other_shapes_and_types_are_refused_before_anything_has_changed(agents, begin):
    agent = agents()
    saved(begin(agent, a=tf.Variable([1.0]), b=tf.Variable([1.0, 2.0]), c=tf.Variable(1)))
    a = tf.Variable([9.0])
    with pytest.raises(MismatchError) as refused:
        begin(agent, a=a, b=tf.Variable([1.0, 2.0, 3.0]), c=tf.Variable(1.0))
    assert refused.value.problems == [
        "b has shape [2] in the checkpoint, [3] in this script",
        "c is int32 in the checkpoint, float32 in this script",
    ]
    assert a.numpy().tolist() == [9.0]


def test_a_wrong_shape_that_shows_later_ends_the_run_as_well(agents, begin):
    agent = agents()
    net = Net(4)
    net(tf.zeros([1, 2]))
    saved(begin(agent, net=net))
    other = Net(5)
    run = begin(agent, net=other)
    with pytest.raises(RuntimeError, match=r"net.inner/bias has shape \[4\] in the checkpoint, \[5\]"):
        other(tf.zeros([1, 2]))
    run.give_up()
    agent.wait_idle()
    assert "net.inner/_kernel has shape [2, 4] in the checkpoint" in agent.of("mismatch")[0]["message"]


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (tf.constant(1.0), "TensorFlow does not track"),
        (lambda: 1, "cannot hold a value of type builtins.function"),
        ([tf.Variable(1.0), object()], r"wrong\.1 is a builtins\.object"),
        ({"a": tf.Variable(1.0), "b": 2}, r"wrong\.b is a builtins\.int"),
        ({1: tf.Variable(1.0)}, "str keys"),
        (object(), "cannot hold a value of type builtins.object"),
    ],
)
def test_what_is_no_trackable_is_refused_with_what_could_be_passed(agents, begin, value, why):
    with pytest.raises(UnsupportedStateError, match=why) as refused:
        begin(agents(), fine=tf.Variable(1.0), wrong=value)
    assert "wrong" in str(refused.value)
    if "str keys" not in why:
        assert "tf.Module" in str(refused.value)


def test_copies_that_share_memory_come_back_as_two(agents, begin):
    agent = agents()
    online, target = tf.Variable(tf.ones([64, 64])), tf.Variable(tf.zeros([64, 64]))
    target.assign(online)
    saved(begin(agent, nets=[online, target]))
    online, target = tf.Variable(tf.zeros([64, 64])), tf.Variable(tf.zeros([64, 64]))
    run = begin(agent, nets=[online, target])
    online.assign_add(tf.ones([64, 64]))
    assert (online.numpy()[0, 0], target.numpy()[0, 0]) == (2.0, 1.0)
    run.give_up()


def test_slots_of_an_optimizer_of_tensorflow_1(agents, begin):
    def one_step(optimizer, variable):
        optimizer.apply_gradients([(tf.constant([1.0, 2.0]), variable)])

    agent = agents()
    variable, optimizer = tf.Variable([0.0, 0.0]), tf.compat.v1.train.AdamOptimizer(0.1)
    one_step(optimizer, variable)
    saved(begin(agent, variable=variable, optimizer=optimizer))
    one_step(optimizer, variable)
    again, other = tf.Variable([5.0, 5.0]), tf.compat.v1.train.AdamOptimizer(0.1)
    run = begin(agent, variable=again, optimizer=other)
    one_step(other, again)
    assert again.numpy().tobytes() == variable.numpy().tobytes()
    run.give_up()


def test_the_random_states_of_tensorflow_and_keras_go_on(agents, begin):
    agent = agents()

    def draw():
        return (
            tf.random.uniform([2]).numpy().tolist(),
            tf.random.get_global_generator().normal([2]).numpy().tolist(),
            keras.ops.convert_to_numpy(keras.random.normal([2])).tolist(),
        )

    keras.utils.set_random_seed(3)
    tf.random.set_global_generator(tf.random.Generator.from_seed(5))
    draw()
    saved(begin(agent, step=tf.Variable(0)))
    expected = draw()
    keras.utils.set_random_seed(4)
    tf.random.set_global_generator(tf.random.Generator.from_seed(6))
    draw()
    begin(agent, step=tf.Variable(0)).give_up()
    assert draw() == expected
