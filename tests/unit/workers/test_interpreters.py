"""The training side on the oldest and the newest interpreter of this machine, with nothing installed beside it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from orch_policies.restart import Budgets
from orch_workers.shipping import bundle
from support import interpreters
from support.files import kill, log_of, wait_log
from support.server import wait_for
from support.workers import LIMIT_S

FOUND = interpreters.found()
ENDS = sorted({*list(FOUND)[:1], *list(FOUND)[-1:]})
ROOT = Path(bundle.__file__).parents[3]
SCRIPT = """
import collections, os, random, sys
import orch

random.seed(1)
own = random.Random(2)
run = orch.training(sums=collections.Counter(), history=[], own=own, skip="replay")
print("python", *sys.version_info[:2], "from", run.step_count, flush=True)
for epoch in run.epochs(4):
    for number in run.batches(range(10)):
        run.values["sums"][(epoch, number % 3)] += own.random() + random.random()
        run.values["history"].append(number)
        run.step(loss=random.random())
        if run.step_count == HOLD and run.restored_step is None:
            run.save()
        if run.step_count == HOLD + 1 and run.restored_step is None and "ORCH_SOCKET" in os.environ:
            os.mkfifo("held")
            open("held").read()
print("final", sorted(run.values["sums"].items()), own.random(), random.random(), flush=True)
"""


def final(text: str) -> str:
    return next(line for line in text.splitlines() if line.startswith("final "))


def test_there_is_more_than_one_interpreter_to_try():
    assert f"{sys.version_info[0]}.{sys.version_info[1]}" in FOUND


@pytest.mark.parametrize("version", ENDS)
def test_killed_with_a_standby_it_ends_as_undisturbed(version, machine, tmp_path):
    script = SCRIPT.replace("HOLD", "17")
    calm = tmp_path / "train.py"
    calm.write_text(script)
    undisturbed = subprocess.run(
        [FOUND[version], "train.py"],
        cwd=tmp_path,
        env={
            "PYTHONPATH": str(bundle.ensure(tmp_path / "node")),
            "PATH": "/usr/bin:/bin",
            "PYTHONHASHSEED": "0",
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT_S,
    )
    assert undisturbed.returncode == 0, undisturbed.stderr
    (machine.workdir / "train.py").write_text(script)
    one = machine.worker(
        run="python train.py",
        python={"version": version},
        policy={"budgets": Budgets(backoff_initial_s=0.0).to_dict()},
    )
    wait_for("it waits to be killed", (machine.workdir / "held").exists, LIMIT_S)
    wait_for("its standby is ready", lambda: _standby(one) == "ready", LIMIT_S)
    kill(one)
    assert one.end()["outcome"] == "succeeded", log_of(one)
    said = wait_log(one, "python " + version.replace(".", " "), count=2)
    assert one.told("Recovered")[-1]["standby"]
    assert final(said) == final(undisturbed.stdout)


@pytest.mark.parametrize("version", FOUND)
def test_the_training_side_can_be_imported(version, tmp_path):
    """All of it, but for what needs a framework; nothing of it warns."""
    folder = bundle.ensure(tmp_path)
    code = (
        "import importlib, pkgutil, sys, orch, orch_workers.training as t\n"
        "names = [m.name for m in pkgutil.walk_packages(t.__path__, t.__name__ + '.')]\n"
        "[importlib.import_module(name) for name in names]\n"
        "ours = {'ray', 'fsspec', 'sqlalchemy', 'pydantic', 'numpy', 'xxhash', 'psutil'}\n"
        "print(len(names), sorted(ours & set(sys.modules)))"
    )
    done = subprocess.run(
        [FOUND[version], "-S", "-W", "error", "-c", code],
        env={"PYTHONPATH": str(folder), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT_S,
    )
    assert done.returncode == 0, done.stderr
    count, imported = done.stdout.split(maxsplit=1)
    assert int(count) > 20
    assert imported.strip() == "[]"


def test_nothing_of_it_needs_a_python_newer_than_3_8():
    """Modules, functions and methods of the standard library, too, whatever interpreters there are here."""
    sources = [ROOT / "workers/orch_workers/training", ROOT / "workers/orch_workers/__init__.py"]
    sources += [ROOT / "orchestrator/orch" / name for name in bundle.ORCH_FILES]
    done = subprocess.run(
        [Path(sys.executable).with_name("vermin"), "-t=3.8-", "--violations", "--no-tips", *sources],
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT_S,
    )
    assert done.returncode == 0, done.stdout


def _standby(running) -> str:
    launcher = running.worker._launcher
    return "" if launcher is None else launcher.usage()["standby"]["state"]
