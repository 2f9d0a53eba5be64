"""Handwritten digits with TensorFlow, a loop of its own: shuffled, augmented, and exact after any kill.

`orch submit examples/tensorflow/job.yaml`, or by hand `python train.py`. The data ship with scikit-learn.
"""

import argparse
import os

import keras
import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits

import orch

parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=5)
parser.add_argument("--kill-at", type=int, default=0, help="SIGKILL at this step, to see what happens")
given = parser.parse_args()

keras.utils.set_random_seed(1)
images, labels = load_digits(return_X_y=True)
images = (images / 16).astype("float32").reshape(-1, 8, 8, 1)


def augment(example, seed):
    """Shifts by a pixel. A stateless operation: its randomness is in the seed that comes with the example."""
    image, label = example
    shift = tf.random.stateless_uniform([2], seed=[seed, 0], minval=-1, maxval=2, dtype=tf.int32)
    return tf.roll(image, shift, axis=[0, 1]), label


examples = tf.data.Dataset.from_tensor_slices((images, labels)).shuffle(512)
seeds = tf.data.Dataset.random(seed=2)
data = tf.data.Dataset.zip((examples, seeds)).map(augment, num_parallel_calls=2).batch(64).prefetch(2)

net = keras.Sequential(
    [
        keras.layers.Conv2D(8, 3, activation="relu"),
        keras.layers.Flatten(),
        keras.layers.Dropout(0.2),
        keras.layers.Dense(10),
    ]
)
optimizer = keras.optimizers.Adam(1e-3)
loss_of = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


@tf.function
def train_step(x, y):
    with tf.GradientTape() as tape:
        loss = loss_of(y, net(x, training=True))
    variables = net.trainable_variables
    optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
    return loss


# `net` and `optimizer` have no variables yet: what is restored waits for them.
run = orch.training(net=net, optimizer=optimizer, data=data)
for _ in run.epochs(given.epochs):
    for x, y in run.batches(data):
        run.step(loss=train_step(x, y))
        if run.step_count == given.kill_at:
            os.kill(os.getpid(), 9)

right = float(np.mean(np.argmax(net.predict(images, verbose=0), axis=1) == labels))
print(f"{right:.1%} of the images are told right after {run.step_count} steps")
np.savez("final.npz", *[v.numpy() for one in (net, optimizer) for v in one.variables])
