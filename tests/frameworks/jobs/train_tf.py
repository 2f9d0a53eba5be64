"""A job whose final bytes say whether it resumed exactly: tf.data shuffled and augmented, dropout, Adam, lazy layers.

One pipeline is stateless, and resumed from its iterator's state; one is stateful, and replayed. KILL_AT: steps at
which to die by SIGKILL.
"""

import os
import signal
import sys
from pathlib import Path

import numpy as np
import tensorflow as tf

import orch

tf.config.threading.set_intra_op_parallelism_threads(1)
tf.config.threading.set_inter_op_parallelism_threads(1)

import keras  # noqa: E402 - after TensorFlow's threads are set

EPOCHS = int(os.environ.get("EPOCHS", "3"))
kills = [int(step) for step in os.environ.get("KILL_AT", "").split(",") if step]

keras.utils.set_random_seed(1)
points = np.random.default_rng(0).normal(size=(96, 6)).astype("float32")
wanted = points.sum(1, keepdims=True)


def die_at(step):
    """Once at each step of KILL_AT, by SIGKILL."""
    mark = Path(f"killed-{step}")
    if step in kills and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)


def stateless(example, seed):
    x, y = example
    return x + 0.1 * tf.random.stateless_normal(tf.shape(x), seed=[seed, 1]), y


def stateful(x, y):
    return x + 0.1 * tf.random.normal(tf.shape(x)) + 0.1 * generator.normal(tf.shape(x)), y


generator = tf.random.Generator.from_seed(4)
examples = tf.data.Dataset.from_tensor_slices((points, wanted))
seeds = tf.data.Dataset.random(seed=2)
one = (
    tf.data.Dataset.zip((examples.shuffle(40), seeds))
    .map(stateless, num_parallel_calls=2)
    .batch(8)
    .prefetch(2)
)
other = examples.shuffle(40).map(stateful).batch(8).prefetch(2)


class Net(keras.Model):
    def __init__(self):
        super().__init__()
        self.layer = keras.layers.Dense(8, activation="relu")
        self.norm = keras.layers.BatchNormalization()
        self.drop = keras.layers.Dropout(0.3)
        self.out = keras.layers.Dense(1)

    def call(self, x, training=False):
        return self.out(self.drop(self.norm(self.layer(x), training=training), training=training))


net, optimizer, count = Net(), keras.optimizers.Adam(0.01), tf.Variable(0)


@tf.function
def train_step(x, y):
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean((net(x, training=True) - y) ** 2)
    variables = net.trainable_variables
    optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
    count.assign_add(1)
    return loss


run = orch.training(net=net, optimizer=optimizer, count=count, one=one, other=other, losses=[])
for _ in run.epochs(EPOCHS):
    for (x, y), (more, wanted_more) in zip(run.batches(one), run.batches(other), strict=True):
        loss = train_step(x, y) + train_step(more, wanted_more)
        run.values["losses"].append(float(loss))
        run.step(loss=loss)
        die_at(run.step_count)

parts = [v.numpy().tobytes().hex() for one in (net, optimizer) for v in one.variables]
parts += [repr(run.values["losses"]), repr(int(count)), repr(run.inexact_reasons)]
parts.append(repr(tf.random.uniform([2]).numpy().tolist()))
Path("final.txt").write_text("\n".join(parts))
sys.stdout.write(f"done at step {run.step_count}\n")
