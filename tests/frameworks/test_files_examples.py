"""Examples of scripts that nobody changes, killed in the middle: they end as they do undisturbed."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import h5py
import numpy as np
import pytest
import tensorflow as tf
import yaml

from support.files import EXAMPLES, LIMIT_S, example, kill, log_of, newest, restored, wait_log
from support.server import wait_for
from support.workers import Machine

THREADS = {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
"""Sums in the same order in every run."""
NAMES = ("keras", "tensorflow", "tensorflow_v1")
STOP_AT = {
    "keras": ("epoch 4:", "going on after epoch"),
    "tensorflow": ("Saved checkpoint for step 30", "Restored from"),
    "tensorflow_v1": ("step 600,", "restored step"),
}
"""What the script prints when it is to be killed, and what it prints when it goes on."""
STOPS = """
    import builtins, os, sys

    said = print

    def printing(*words):
        said(*words, flush=True)
        if words[0].startswith(sys.argv[1]) and not os.path.exists("stopped"):
            os.mkfifo("stopped")
            open("stopped").read()

    builtins.print = printing
    exec(compile(open("train.py").read(), "train.py", "exec"))
"""
ALL = """
    import os, runpy, sys

    for name in sys.argv[2:]:
        os.makedirs(name)
        os.chdir(name)
        runpy.run_path(os.path.join(sys.argv[1], name, "train.py"), run_name="__main__")
        os.chdir("..")
"""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All of them in one process, one after the other: TensorFlow takes longer to import than they take to run."""
    folder = tmp_path_factory.mktemp("undisturbed")
    command = [sys.executable, "-c", textwrap.dedent(ALL), str(EXAMPLES / "unchanged"), *NAMES]
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(folder), **THREADS}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=170
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch):
    made = Machine(Path(tempfile.mkdtemp(prefix="orch-")), monkeypatch)
    yield made
    made.close()


def values(folder: Path) -> dict[str, bytes]:
    """Everything that was saved last."""
    latest = tf.train.latest_checkpoint(str(folder)) if folder.is_dir() else None
    if latest is not None:
        reader = tf.train.load_checkpoint(latest)
        kinds = reader.get_variable_to_dtype_map()
        names = [name for name in kinds if kinds[name] in {tf.float32, tf.int64, tf.int32}]
        return {name: np.asarray(reader.get_tensor(name)).tobytes() for name in names}
    found: dict[str, bytes] = {}
    with h5py.File(max(folder.glob("*.h5")), "r") as file:
        file.visititems(
            lambda name, one: (
                found.update({name: one[()].tobytes()}) if isinstance(one, h5py.Dataset) else None
            )
        )
    return found


@pytest.mark.parametrize("name", NAMES)
def test_killed_in_the_middle_it_ends_as_undisturbed(name, machine, undisturbed):
    example(machine, f"unchanged/{name}")
    job = yaml.safe_load((EXAMPLES / "unchanged" / name / "job.yaml").read_text())
    (machine.workdir / "stops.py").write_text(textwrap.dedent(STOPS))
    stop_at, goes_on = STOP_AT[name]
    one = machine.worker(
        run=f"python stops.py '{stop_at}'",
        files=tuple(job["checkpoint"]["files"]),
        metrics=job["metrics"],
        env=THREADS,
        standby=False,
    )
    wait_log(one, stop_at)
    wait_for("it stands still", (machine.workdir / "stopped").exists, LIMIT_S)
    wait_for("it is kept", lambda: newest(one) > 0, LIMIT_S)
    kill(one)
    wait_log(one, goes_on)
    end = wait_for("its end", lambda: one.told("WorkerEnded"), LIMIT_S)[0]
    assert end["outcome"] == "succeeded", log_of(one)[-2000:]
    assert restored(one)[0][0] >= 1
    folder = {"keras": ".", "tensorflow": "tf_ckpts", "tensorflow_v1": "models/iris"}[name]
    assert values(machine.workdir / folder) == values(undisturbed / name / folder)
