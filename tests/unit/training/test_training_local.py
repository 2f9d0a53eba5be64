"""Run by hand, outside orch: checkpoints beside the script, and Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
from fake_agent import PROCESS_LIMIT_S, SOURCES

from orch_workers.training.local import run_name

SCRIPT = """
import os, signal
import torch
import orch

torch.manual_seed(1)
model = torch.nn.Linear(3, 3)
optimizer = torch.optim.Adam(model.parameters())
data = torch.utils.data.DataLoader(torch.randn(20, 3), batch_size=4, shuffle=True)
run = orch.training(
    model=model, optimizer=optimizer, restore="AFRESH" not in os.environ,
    local_every_s=float(os.environ.get("EVERY_S", "600")),
)
for epoch in run.epochs(3):
    for batch in run.batches(data):
        loss = model(batch).sum()
        optimizer.zero_grad(); loss.backward(); optimizer.step()
        if run.step_count + 1 == int(os.environ.get("AT", "0")):
            os.kill(os.getpid(), getattr(signal, os.environ["WITH"]))
            exec(os.environ.get("THEN", ""))
        run.step(loss=loss)
print(model.weight.detach().numpy().tobytes().hex())
"""


def start(folder, **extra):
    path = folder / "Train me.py"
    path.write_text(SCRIPT)
    env = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.pathsep.join(SOURCES),
        "PYTHONWARNINGS": "error",
        **extra,
    }
    return subprocess.run(
        [sys.executable, str(path)],
        env=env,
        cwd="/",
        capture_output=True,
        text=True,
        timeout=PROCESS_LIMIT_S,
        check=False,
    )


def test_ctrl_c_saves_and_the_same_command_goes_on(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    undisturbed = start(tmp_path / "a")
    assert undisturbed.returncode == 0, undisturbed.stderr

    stopped = start(tmp_path / "b", AT="7", WITH="SIGINT")
    assert stopped.returncode == 128 + signal.SIGINT
    assert "left at step 7; the same command goes on from step 7" in stopped.stderr
    assert "Traceback" not in stopped.stderr
    done = start(tmp_path / "b")
    assert "went on from step 7 (epoch 1)" in done.stderr
    assert done.stdout == undisturbed.stdout
    names = sorted(path.name for path in (tmp_path / "b" / ".orch").iterdir())
    assert names == [".gitignore", "train-me", "train-me.lock"]


def test_a_kill_loses_what_came_after_the_newest_checkpoint(tmp_path):
    undisturbed = start(tmp_path, EVERY_S="1e-9")
    killed_folder = tmp_path / "killed"
    killed_folder.mkdir()
    killed = start(killed_folder, AT="9", WITH="SIGKILL", EVERY_S="1e-9")
    assert killed.returncode == -signal.SIGKILL
    done = start(killed_folder)
    assert "went on from step 8 (epoch 1)" in done.stderr
    assert done.stdout == undisturbed.stdout


def test_ctrl_c_twice_leaves_at_once(tmp_path):
    twice = start(tmp_path, AT="7", WITH="SIGINT", THEN="os.kill(os.getpid(), signal.SIGINT)")
    assert "KeyboardInterrupt" in twice.stderr
    again = start(tmp_path)
    assert "went on from step 1 (epoch 0)" in again.stderr  # the first step's checkpoint


def test_a_second_process_in_the_same_folder_is_refused(tmp_path):
    env = "{**os.environ, 'AT': '0'}"
    other = f"import subprocess, sys\nr = subprocess.run([sys.executable, sys.argv[0]], env={env})"
    both = start(tmp_path, AT="2", WITH="SIGCONT", THEN=other + "\nassert r.returncode == 1")
    assert both.returncode == 0, both.stderr
    assert "another process trains train-me" in both.stderr


def test_only_damaged_checkpoints_are_never_a_silent_fresh_start(tmp_path):
    assert start(tmp_path, AT="3", WITH="SIGKILL").returncode == -signal.SIGKILL
    for shard in (tmp_path / ".orch").rglob("*.safetensors"):
        shard.write_bytes(b"x" * 100)
    refused = start(tmp_path)
    assert refused.returncode == 1
    assert "can be restored" in refused.stderr
    assert "to start over" in refused.stderr


def test_starting_afresh_leaves_the_old_checkpoints_behind(tmp_path):
    undisturbed = start(tmp_path)
    afresh = start(tmp_path, AFRESH="1", AT="3", WITH="SIGINT")
    assert "starts from nothing" in afresh.stderr
    done = start(tmp_path)
    assert "went on from step 3" in done.stderr
    assert done.stdout == undisturbed.stdout


@pytest.mark.parametrize(
    ("stem", "name"),
    [("train", "train"), ("My Script_2", "my-script-2"), ("…", "script"), ("x" * 99, "x" * 63)],
)
def test_names(stem, name):
    assert run_name(stem) == name
