"""model.fit with orch.keras.Checkpoint(): ended in the middle and begun anew, it ends as one that went through.

Each "process" is a model of its own in this one. Runs on TensorFlow's backend, and once more on PyTorch's in a process
of its own (test_keras_torch.py).
"""

from __future__ import annotations

import keras
import numpy as np
import pytest

import orch.keras
from orch_workers.training import protocol
from orch_workers.training.errors import MismatchError

BACKEND = keras.backend.backend()
DATA = (
    ("arrays", "dataset", "endless", "stateful")
    if BACKEND == "tensorflow"
    else ("arrays", "loader", "generator")
)
EPOCHS = 4


class Killed(BaseException):
    pass


class Dying(keras.callbacks.Callback):
    """Notes what it sees, and ends the process after so many batches."""

    def __init__(self, kill_at):
        super().__init__()
        self.seen = []
        self.kill_at = kill_at

    def on_train_batch_end(self, batch, logs=None):
        self.seen.append([batch, float(logs["loss"])])
        if len(self.seen) == self.kill_at:
            raise Killed


pytestmark = [
    pytest.mark.usefixtures("runs"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # Keras beside NumPy 2
]


def fed(kind):
    x = np.random.default_rng(0).normal(size=(80, 6)).astype("float32")
    y = x.sum(1, keepdims=True)
    if kind == "arrays":
        return {"x": x, "y": y, "batch_size": 8}
    if kind == "generator":
        rng = np.random.default_rng(3)

        def batches():
            while True:
                rows = rng.integers(0, 80, 8)
                yield x[rows], y[rows]

        return {"x": batches(), "steps_per_epoch": 7, "shuffle": False}
    if kind == "loader":
        import torch

        data = torch.utils.data.TensorDataset(torch.tensor(x), torch.tensor(y))
        return {"x": torch.utils.data.DataLoader(data, batch_size=8, shuffle=True), "shuffle": False}
    import tensorflow as tf

    data = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(30)
    if kind == "stateful":
        data = data.map(lambda x, y: (x + tf.random.normal(tf.shape(x)), y))
    if kind == "endless":
        return {"x": data.batch(8).repeat(), "steps_per_epoch": 7, "shuffle": False}
    return {"x": data.batch(8), "shuffle": False}


class Process:
    """One start of the script."""

    def __init__(self, kind, kill_at=None, epochs=EPOCHS):
        keras.utils.set_random_seed(1)
        layers = [keras.layers.Dense(8, activation="relu"), keras.layers.BatchNormalization()]
        layers += [keras.layers.Dropout(0.3), keras.layers.Dense(1)]
        self.model = keras.Sequential(layers)
        # Compiled once is enough: it takes longer than all the steps.
        eager = BACKEND != "tensorflow" or kind != "stateful"
        self.model.compile(
            optimizer=keras.optimizers.Adam(0.05), loss="mse", metrics=["mae"], run_eagerly=eager
        )
        self.dying = Dying(kill_at)
        self.plateau = keras.callbacks.ReduceLROnPlateau(
            monitor="loss", factor=0.5, patience=1, min_delta=0.3
        )
        self.stopping = keras.callbacks.EarlyStopping(
            monitor="val_mae", patience=2, restore_best_weights=True
        )
        self.orch = orch.keras.Checkpoint()
        self.fed, self.epochs = fed(kind), epochs
        self.history = None

    def fit(self):
        x = np.random.default_rng(5).normal(size=(20, 6)).astype("float32")
        callbacks = [self.plateau, self.dying, self.orch, self.stopping]
        try:
            self.history = self.model.fit(
                **self.fed,
                epochs=self.epochs,
                validation_data=(x, x.sum(1, keepdims=True)),
                verbose=0,
                callbacks=callbacks,
            )
        except Killed:
            self.orch.run.give_up()
            return self
        self.orch.run.finish()
        return self

    def end(self):
        variables = [*self.model.variables, *self.model.optimizer.variables]
        found = {"variables": [keras.ops.convert_to_numpy(v).tolist() for v in variables]}
        found["seen"] = self.dying.seen
        found["history"] = (self.history.epoch, self.history.history)
        found["plateau"] = (self.plateau.wait, float(self.plateau.best))
        stopping = self.stopping
        found["stopping"] = (stopping.wait, stopping.stopped_epoch, stopping.best_epoch, float(stopping.best))
        return found


@pytest.fixture
def start(monkeypatch):
    def start(agent, *args, **options):
        agent.wait_idle()
        monkeypatch.setenv(protocol.ENV_SOCKET, agent.socket_path)
        return Process(*args, **options).fit()

    return start


@pytest.mark.parametrize("kind", DATA)
def test_a_killed_fit_ends_as_one_that_went_through(agents, start, kind):
    expected = start(agents(), kind).end()
    assert len(expected["history"][0]) >= 3
    agent = agents(rules={"steps": 4, "epochs": 1})
    batches = 7 if "steps_per_epoch" in fed(kind) else 10
    at_the_end = (2 * batches,) if kind == "arrays" else ()
    for kill_at in (6, *at_the_end, 2 * batches + 5):
        killed = start(agent, kind, kill_at)
        assert killed.dying.seen == expected["seen"][:kill_at], kill_at
    found = start(agent, kind).end()
    assert found == expected
    assert agent.of("restored")[-1]["step"] in (2 * batches + 4 - (2 * batches) % 4, 2 * batches)
    assert [note["message"] for note in agent.of("note")] == []


def test_a_fit_that_was_stopped_early_is_not_gone_on_with(agents, start):
    agent = agents()
    first = start(agent, "arrays", epochs=20)
    assert 0 < first.stopping.stopped_epoch < 19, "it did stop early"
    again = start(agent, "arrays", epochs=20)
    assert again.dying.seen == first.dying.seen
    assert again.end() == first.end()


def test_a_later_fit_of_the_same_model_is_the_one_that_goes_on(agents, monkeypatch):
    def script(agent, kill_at=None):
        agent.wait_idle()
        monkeypatch.setenv(protocol.ENV_SOCKET, agent.socket_path)
        process = Process("arrays", kill_at, epochs=2)
        process.stopping.patience = 99
        process.fit = lambda: process
        try:
            for _ in range(2):
                keep = [process.dying, process.orch]
                process.history = process.model.fit(**process.fed, epochs=1, verbose=0, callbacks=keep)
        except Killed:
            process.orch.run.give_up()
            return None
        process.orch.run.finish()
        weights = [keras.ops.convert_to_numpy(v).tolist() for v in process.model.variables]
        return weights, process.dying.seen

    expected = script(agents(rules={"steps": 3}))
    agent = agents(rules={"steps": 3})
    assert script(agent, 7) is None
    assert script(agent, 15) is None
    assert script(agent) == expected


def test_the_model_of_another_shape_is_refused(agents, start, monkeypatch):
    agent = agents()
    start(agent, "arrays", epochs=1)
    other = Process("arrays", epochs=1)
    other.fed = {"x": np.zeros((16, 3), "float32"), "y": np.zeros((16, 1), "float32")}
    agent.wait_idle()
    with pytest.raises(MismatchError, match=r"shape \[6, 8\] in the checkpoint, \[3, 8\]"):
        other.model.fit(**other.fed, epochs=1, verbose=0, callbacks=[other.orch])
