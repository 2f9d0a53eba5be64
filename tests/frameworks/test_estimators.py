"""The iris Estimator of the examples: it lives in TensorFlow 2.15, which orch installs for it, is killed, and goes on.

The other kinds (a hook, a model_fn with a Scaffold, no model_dir) are in `python -m tests.soak estimators`.
"""

from __future__ import annotations

import tempfile
import textwrap
from pathlib import Path

import pytest
import yaml

from support.estimators import GOES_ON, LIMIT_S, QUIET, end
from support.files import EXAMPLES, example, kill, log_of, newest, restored
from support.server import wait_for
from support.workers import Machine

# TensorFlow's words go through Python's logging: the second save is where it stands still and is killed.
STOPS = """
    import logging, os

    class Stop(logging.Handler):
        saves = 0

        def emit(self, record):
            if "after saving checkpoint" in record.getMessage():
                self.saves += 1
                if self.saves == 2 and not os.path.exists("stopped"):
                    os.mkfifo("stopped")
                    open("stopped").read()

    logging.getLogger("tensorflow").addHandler(Stop())
    exec(compile(open("train.py").read(), "train.py", "exec"))
"""


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch):
    made = Machine(Path(tempfile.mkdtemp(prefix="orch-")), monkeypatch)
    yield made
    made.close()


def test_the_iris_estimator_goes_on_where_it_was_killed(machine):
    example(machine, "unchanged/estimator")
    job = yaml.safe_load((EXAMPLES / "unchanged/estimator/job.yaml").read_text())
    (machine.workdir / "stops.py").write_text(textwrap.dedent(STOPS))
    one = machine.worker(
        run="python stops.py",
        python=job["python"],
        files=tuple(job["checkpoint"]["files"]),
        metrics=job["metrics"],
        env=QUIET,
        standby=False,
        **GOES_ON,
    )
    wait_for("it stands still", (machine.workdir / "stopped").exists, LIMIT_S)
    wait_for("it is kept", lambda: newest(one) > 0, LIMIT_S)
    kill(one)
    end(one)
    log = log_of(one)
    assert "+ tensorflow-estimator==2.15.0" in log
    assert restored(one)[0][0] >= 1
    assert "Restoring parameters from models/iris/model.ckpt-" in log
    assert "after 3000 steps" in log
    assert one.metrics()["loss"] > 0
    folder = machine.workdir / "models/iris"
    assert "model.ckpt-3000" in (folder / "checkpoint").read_text()
    assert len(list(folder.glob("*.index"))) == 3, "keep_checkpoint_max"
    assert len(list(folder.glob("events.out.tfevents.*"))) == 2, "one for each start"
