from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

from orch_workers.shipping import bundle


def test_it_holds_the_training_side_and_nothing_else(tmp_path):
    folder = bundle.ensure(tmp_path)
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    assert "orch/__init__.py" in names
    assert "orch_workers/__init__.py" in names
    assert "orch_workers/training/slots.py" in names
    rest = {f"orch/{name}" for name in bundle.ORCH_FILES} | {"orch_workers/__init__.py"}
    hook = {name for name in names if name.startswith(f"{bundle.HOOK_FOLDER}/")}
    assert f"{bundle.HOOK_FOLDER}/sitecustomize.py" in hook
    assert all(name in rest | hook or name.startswith("orch_workers/training/") for name in names)
    assert all(name.endswith(".py") for name in names)


def test_a_bare_interpreter_can_import_orch_from_it(tmp_path):
    folder = bundle.ensure(tmp_path)
    script = "import orch, sys; print(orch.__file__); assert callable(orch.training)"
    found = subprocess.run(
        [sys.executable, "-S", "-c", script],
        env={"PYTHONPATH": str(folder), "PATH": os.defpath},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert found.stdout.strip() == str(folder / "orch" / "__init__.py")
    assert bundle.ensure(tmp_path) == folder, "compiled files do not count"


def test_it_is_made_once_and_named_by_its_content(tmp_path):
    first = bundle.ensure(tmp_path / "a")
    second = bundle.ensure(tmp_path / "b")
    assert first.name == second.name
    marker = first / "orch_workers" / "training" / "__init__.py"
    before = marker.stat().st_mtime_ns
    assert bundle.ensure(tmp_path / "a") == first
    assert marker.stat().st_mtime_ns == before


def test_a_damaged_bundle_is_replaced(tmp_path):
    folder = bundle.ensure(tmp_path)
    victim = folder / "orch_workers" / "__init__.py"
    good = victim.read_bytes()
    victim.write_bytes(b"")
    (folder / "orch" / "__init__.py").unlink()
    assert bundle.ensure(tmp_path) == folder
    assert victim.read_bytes() == good
    assert (folder / "orch" / "__init__.py").is_file()


def test_many_at_once_agree_and_leave_nothing_behind(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        folders = set(pool.map(lambda _: bundle.ensure(tmp_path), range(16)))
    assert len(folders) == 1
    assert [path.name for path in (tmp_path / "bundle").iterdir()] == [folders.pop().name]
