"""model.fit on PyTorch: the backend is chosen when Keras is imported, so it needs a process of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

LIMIT_S = 120


def test_a_killed_fit_ends_as_one_that_went_through_on_pytorch_too():
    here = Path(__file__)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            str(here.with_name("test_keras_fit.py")),
        ],
        env={**os.environ, "KERAS_BACKEND": "torch", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]


def test_the_example_of_a_fit(tmp_path):
    """By hand, twice: the second start finds that nothing is left to do."""
    example = Path(__file__).parents[2] / "examples" / "tensorflow" / "fit.py"
    shutil.copy(example, tmp_path)
    sources = os.pathsep.join(
        str(example.parents[2] / name) for name in ("orchestrator", "workers", "policies")
    )
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "fit.py", "--epochs", "2"],
            cwd=tmp_path,
            env={**os.environ, "KERAS_BACKEND": "torch", "OMP_NUM_THREADS": "1", "PYTHONPATH": sources},
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert "2 epochs, best" in done.stdout
    assert "went on from step 52 (epoch 2)" in done.stderr
    assert (tmp_path / "final.npz").exists()
