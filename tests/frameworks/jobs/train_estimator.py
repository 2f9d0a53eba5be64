"""Estimators of TensorFlow 2.15 whose every step sees all data, so that they end alike however often they are killed.

`files`: DNNClassifier with a model_dir. `scaffold`: a model_fn with Scaffold(saver=tf.train.Checkpoint(...)). `hook`:
orch's hook, and no model_dir of one's own. `lost`: no model_dir, and nothing that keeps it. HOLD: the step at which the
first start waits to be killed.
"""

import os
import sys
from pathlib import Path

import tensorflow as tf

v1 = tf.compat.v1
v1.logging.set_verbosity(v1.logging.INFO)
KIND, STEPS, HOLD = sys.argv[1], 60, int(os.environ.get("HOLD", "0"))
XS = [[row % 7 * 0.1, row % 5 * 0.2] for row in range(60)]
YS = [row % 3 for row in range(60)]


def input_fn():
    values = {"x": tf.constant(XS)}
    return tf.data.Dataset.from_tensors((values, tf.constant(YS))).repeat()


class Hold(v1.train.SessionRunHook):
    """Also says what the end is like."""

    def begin(self):
        self._step = v1.train.get_global_step()
        self._variables = {variable.op.name: variable for variable in v1.global_variables()}

    def before_run(self, run_context):
        return v1.train.SessionRunArgs(self._step)

    def after_run(self, run_context, run_values):
        if HOLD and run_values.results >= HOLD and not Path("held").exists():
            os.mkfifo("held")
            Path("held").read_bytes()

    def end(self, session):
        values = session.run(self._variables)
        with Path("final.txt").open("w") as file:
            file.writelines(f"{name} {values[name].tobytes().hex()}\n" for name in sorted(values))


def model_fn(features, labels, mode):
    """As in TensorFlow's guide of checkpoints: an object-based checkpoint out of an Estimator."""
    # Keras 2 begins a graph's weights from seeds of its own, other ones in every process.
    first, second = (tf.keras.initializers.GlorotUniform(seed=seed) for seed in (1, 2))
    layers = tf.keras.layers
    net = tf.keras.Sequential(
        [layers.Dense(8, "tanh", kernel_initializer=first), layers.Dense(3, kernel_initializer=second)]
    )
    optimizer = tf.keras.optimizers.legacy.Adam(0.1)
    checkpoint = tf.train.Checkpoint(step=v1.train.get_global_step(), optimizer=optimizer, net=net)
    with tf.GradientTape() as tape:
        wrong = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        loss = wrong(labels, net(features["x"]))
    gradients = tape.gradient(loss, net.trainable_variables)
    applied = optimizer.apply_gradients(zip(gradients, net.trainable_variables, strict=True))
    return tf.estimator.EstimatorSpec(
        mode,
        loss=loss,
        train_op=tf.group(applied, checkpoint.step.assign_add(1)),
        scaffold=v1.train.Scaffold(saver=checkpoint),
    )


folder = "models/iris" if KIND in {"files", "scaffold"} else None
config = tf.estimator.RunConfig(folder, tf_random_seed=1, save_checkpoints_steps=10, keep_checkpoint_max=3)
if KIND == "scaffold":
    estimator = tf.estimator.Estimator(model_fn, config=config)
else:
    columns = [tf.feature_column.numeric_column("x", (2,))]
    estimator = tf.estimator.DNNClassifier([8], columns, n_classes=3, config=config)
hooks = [Hold()]
if KIND == "hook":
    import orch.tensorflow

    hooks.append(orch.tensorflow.SessionHook())
print("trains in", estimator.model_dir, flush=True)
estimator.train(input_fn, hooks=hooks, max_steps=STEPS)
