"""TensorFlow and Keras, in one process of their own: importing them takes longer than any of these tests, and no test
of the rest shall have them in its process.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import pytest

from orch_workers.training import keras_fit, session, tf_session
from unit.training import harness
from unit.training.fake_agent import FakeAgent

if os.environ.get("KERAS_BACKEND", "tensorflow") == "tensorflow":
    with warnings.catch_warnings():  # what TensorFlow says about Python and protobuf as it is imported
        warnings.simplefilter("ignore")
        import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)


@pytest.fixture
def agents(tmp_path: Path) -> Any:
    with harness.fake_agents(tmp_path) as make:
        yield make


@pytest.fixture
def runs(agents: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Every run that an integration of orch's begins, closed when the test is over; the interpreter's end and signals
    are left alone.
    """
    begun: list[Any] = []

    def begin(*given: Any) -> Any:
        begun.append(session.begin(*given))
        return begun[-1]

    monkeypatch.setattr(keras_fit, "open_run", begin)
    monkeypatch.setattr(tf_session, "open_run", begin)
    yield begun
    for run in begun:
        run.give_up()


@pytest.fixture
def begin(agents: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`begin(agent, **objects)`: a run in this process, closed when the test is over."""
    runs: list[Any] = []

    def begin(agent: FakeAgent, **objects: Any) -> Any:
        runs.append(harness.begin(agent, monkeypatch, **objects))
        return runs[-1]

    yield begin
    for run in runs:
        run.give_up()
