"""TensorFlow's tutorial of premade Estimators: a DNNClassifier on iris, in a model_dir. It knows nothing of orch."""

import csv
from pathlib import Path

import tensorflow as tf

tf.compat.v1.logging.set_verbosity(tf.compat.v1.logging.INFO)
FEATURES = ["sepal_length", "sepal_width", "petal_length", "petal_width"]
MAX_STEPS = 3000

with Path("iris.csv").open() as file:  # Fisher 1936, public domain
    rows = list(csv.DictReader(file))
features = {name: [float(row[name]) for row in rows] for name in FEATURES}
labels = [int(row["species"]) for row in rows]


def input_fn(training=True, batch_size=32):
    dataset = tf.data.Dataset.from_tensor_slices((features, labels))
    if training:
        dataset = dataset.shuffle(1000).repeat()
    return dataset.batch(batch_size)


classifier = tf.estimator.DNNClassifier(
    hidden_units=[30, 10],
    feature_columns=[tf.feature_column.numeric_column(name) for name in FEATURES],
    n_classes=3,
    model_dir="models/iris",
    config=tf.estimator.RunConfig(save_checkpoints_secs=1, keep_checkpoint_max=3),
)
classifier.train(input_fn, max_steps=MAX_STEPS)
result = classifier.evaluate(lambda: input_fn(training=False))
print(f"accuracy: {result['accuracy']:.3f} after {result['global_step']} steps")
