"""Digits on two workers: each sees its half of the data, and both have the same weights after every step."""

import os
from pathlib import Path

import keras
import tensorflow as tf
from sklearn.datasets import load_digits  # ships with scikit-learn (UCI, CC BY 4.0)

import orch

strategy = tf.distribute.MultiWorkerMirroredStrategy()  # before anything else of TensorFlow
rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
keras.utils.set_random_seed(0)
EPOCHS = int(os.environ.get("EPOCHS", "6"))

digits = load_digits()
data = tf.data.Dataset.from_tensor_slices((digits.data.astype("float32") / 16, digits.target))
data = data.shard(ranks, rank).shuffle(1000, seed=0).batch(32, drop_remainder=True)

with strategy.scope():
    net = keras.Sequential(
        [keras.layers.Input((64,)), keras.layers.Dense(32, "relu"), keras.layers.Dense(10)]
    )
    optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
    optimizer.build(net.trainable_variables)


@tf.function
def train_step(x, y):
    def replica(x, y):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(keras.losses.sparse_categorical_crossentropy(y, net(x), from_logits=True))
        gradients = tape.gradient(loss, net.trainable_variables)
        # Keras adds up what the replicas have found; the mean is what one worker with all data would have found.
        optimizer.apply([gradient / ranks for gradient in gradients], net.trainable_variables)
        return loss

    return strategy.reduce("mean", strategy.run(replica, (x, y)), axis=None)


run = orch.training(net=net, optimizer=optimizer)
for _ in run.epochs(EPOCHS):
    for x, y in run.batches(data):
        run.step(loss=float(train_step(x, y)))
if rank == 0:
    values = [*net.trainable_variables, *optimizer.variables]
    Path("final.txt").write_text("\n".join(value.numpy().tobytes().hex() for value in values))
print(f"rank {rank}: done after {run.step_count} steps", flush=True)
