"""A script that overwrites its only file again and again never finds it in pieces, and never goes back."""

from __future__ import annotations

import pytest

from support.killing import kill_again_and_again

SCRIPTS = {
    "pickle": (
        """
        at = load()
        def write(at):
            with open("state.pkl", "wb") as file:
                pickle.dump({"step": at, "ballast": [bytes(2_000_000), bytes(1_000_000)]}, file)
        """,
        12,
        "state.pkl",
    ),
    "torch": (
        """
        import torch
        at = 0
        if os.path.exists("state.pt"):
            at = torch.load("state.pt")["step"]
            print("goes on from", at, flush=True)
        def write(at):
            torch.save({"step": at, "weights": torch.zeros(1_000_000)}, "state.pt")
        """,
        3,
        "state.pt",
    ),
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_killed_at_any_moment_of_its_writing(name, machine, rng):
    beginning, kills, file = SCRIPTS[name]
    steps = kill_again_and_again(machine, rng, beginning, kills, file)
    assert len(steps) == kills
    assert steps == sorted(steps)
