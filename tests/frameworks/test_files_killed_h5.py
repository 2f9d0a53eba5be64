"""A script that overwrites an HDF5 file again and again, killed at any moment of it."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from support.killing import kill_again_and_again
from support.workers import Machine

KILLS = 6
SCRIPT = """
    import h5py
    at = 0
    if os.path.exists("state.h5"):
        with h5py.File("state.h5", "r") as file:
            at = int(file.attrs["step"])
            assert all((file[f"layer{n}/w"][()] == at).all() for n in range(20))
        print("goes on from", at, flush=True)
    def write(at):
        with h5py.File("state.h5", "w") as file:
            for n in range(20):
                file.create_dataset(f"layer{n}/w", data=[float(at)] * 20000)
            file.attrs["step"] = at
"""


def test_killed_at_any_moment_of_its_writing(monkeypatch: pytest.MonkeyPatch, rng):
    machine = Machine(Path(tempfile.mkdtemp(prefix="orch-")), monkeypatch)
    try:
        steps = kill_again_and_again(machine, rng, SCRIPT, KILLS, "state.h5")
    finally:
        machine.close()
    assert len(steps) == KILLS
    assert steps == sorted(steps)
