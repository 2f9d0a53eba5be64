"""Keras, with the weights of every epoch in a file of its own. It knows nothing of orch."""

# ruff: noqa: PTH207  As it is found everywhere.

import glob

import keras
from sklearn.datasets import load_digits  # ships with scikit-learn (from the UCI repository, CC BY 4.0)

EPOCHS = 6

keras.utils.set_random_seed(0)
digits = load_digits()
model = keras.Sequential(
    [keras.Input((64,)), keras.layers.Dense(64, activation="relu"), keras.layers.Dense(10)]
)
model.compile(
    optimizer=keras.optimizers.SGD(0.1), loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True)
)

found = sorted(glob.glob("weights.*.weights.h5"))
start = 0
if found:
    model.load_weights(found[-1])
    start = int(found[-1].split(".")[1])
    print(f"going on after epoch {start}")

for epoch in range(start, EPOCHS):
    history = model.fit(digits.data / 16, digits.target, batch_size=64, shuffle=False, verbose=0)
    model.save_weights(f"weights.{epoch + 1:02d}.weights.h5")
    print(f"epoch {epoch + 1}: loss {history.history['loss'][0]:.4f}")
