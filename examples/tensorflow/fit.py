"""The same digits with Keras' model.fit: `python fit.py`. Killed in the middle of an epoch, it goes on there.

Runs on any backend of Keras 3: `KERAS_BACKEND=torch python fit.py`.
"""

import argparse

import keras
import numpy as np
from sklearn.datasets import load_digits

import orch

parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=20)
given = parser.parse_args()

keras.utils.set_random_seed(1)
images, labels = load_digits(return_X_y=True)
images = (images / 16).astype("float32")

model = keras.Sequential(
    [keras.layers.Dense(64, activation="relu"), keras.layers.Dropout(0.2), keras.layers.Dense(10)]
)
model.compile(
    optimizer=keras.optimizers.Adam(1e-3),
    loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    metrics=["accuracy"],
)
history = model.fit(
    images,
    labels,
    batch_size=64,
    epochs=given.epochs,
    validation_split=0.1,
    verbose=2,
    callbacks=[
        keras.callbacks.ReduceLROnPlateau(patience=2),
        keras.callbacks.EarlyStopping(patience=5, restore_best_weights=True),
        orch.keras.Checkpoint(),
    ],
)
print(f"{len(history.history['loss'])} epochs, best {max(history.history['val_accuracy']):.1%}")
np.savez("final.npz", *[keras.ops.convert_to_numpy(v) for v in model.variables])
