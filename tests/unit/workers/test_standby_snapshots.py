"""restart.snapshot_every_steps: what is copied into memory between the checkpoints, and what becomes of it."""

from __future__ import annotations

import textwrap

import pytest

from orch_workers.process.launch import Launcher
from support import snapshots
from support.server import wait_for
from support.workers import LIMIT_S, ROOM_BYTES, Stuck, good


class Silent:
    def note(self, message):
        pass


def fill(kept, index_and_path, step):
    generation = (kept.generation.attempt, kept.generation.restart)
    snapshots.fill(index_and_path[1], snapshots.state(step, 10), generation=generation, step=step)
    kept.keeper.saved(index_and_path[0], {"reason": "snapshot", "epoch": 0})


@pytest.fixture
def kept(machine):
    made = machine.keeper().open()
    made.begin()
    return made


@pytest.fixture
def launcher(kept):
    return Launcher(kept.config, {}, Silent(), kept.keeper)


def save(launcher, step):
    return launcher.on_save(ROOM_BYTES, step=step, reason="snapshot", wait=False)


def test_it_stays_in_memory_until_the_process_dies(machine, kept, launcher):
    kept.keep(5)
    for step in (6, 7, 8):
        fill(kept, save(launcher, step), step)
    assert kept.keeper.drain(LIMIT_S)
    assert [step for _, step in machine.committed()] == [5]
    kept.keeper.process_gone()
    assert kept.prepare().step == 8
    assert kept.keeper.drain(LIMIT_S)
    assert [step for _, step in machine.committed()] == [5, 8]


def test_it_is_left_out_rather_than_written_over_the_newest(machine, kept, launcher):
    kept.keep(5)
    machine.storage.mood = stuck = Stuck("shards")
    kept.save(6)
    assert stuck.reached.wait(LIMIT_S)
    fill(kept, save(launcher, 7), 7)
    assert save(launcher, 8) is None
    kept.keeper.process_gone()
    stuck.go.set()
    machine.storage.mood = good
    assert kept.prepare().step == 7


SCRIPT = """
    import os, orch

    class Count:
        def __init__(self): self.value = 0
        def state_dict(self): return {"value": self.value}
        def load_state_dict(self, state): self.value = state["value"]

    count = Count()
    run = orch.training(count=count)
    while run.step_count < 20:
        count.value += 1
        run.step()
        if run.step_count == 11 and run.restored_step is None:
            os.mkfifo("storage-has-it")
            open("storage-has-it").read()
        if run.step_count == 13 and run.restored_step is None:
            os.kill(os.getpid(), 9)
    print("ends with", count.value)
"""


def test_a_crash_loses_no_more_than_since_the_last_one(machine):
    (machine.workdir / "count.py").write_text(textwrap.dedent(SCRIPT))
    worker = machine.worker(run="python count.py", every_steps=10, snapshot_every_steps=4, standby=False)
    wait_for("step 10 is in storage", lambda: 10 in {step for _, step in machine.committed()}, LIMIT_S)
    machine.go("storage-has-it")
    assert worker.end()["outcome"] == "succeeded"
    assert worker.told("Restored")[0]["step"] == 12
    assert worker.told("Recovered")[1]["lost_steps"] == 1
    # In storage: the first, those of every tenth step, the one that the process left behind, the last.
    assert {step for _, step in machine.committed()} <= {1, 10, 12, 20}
    assert (worker.paths.log).read_text().rstrip().endswith("ends with 20")


def test_a_checkpoint_that_is_due_at_the_same_step_goes_to_storage(machine):
    (machine.workdir / "count.py").write_text(
        "import orch\nrun = orch.training(value=1)\nwhile run.step_count < 3:\n    run.step()\nrun.save()\n"
    )
    worker = machine.worker(run="python count.py", every_steps=100, snapshot_every_steps=1, standby=False)
    assert worker.end()["outcome"] == "succeeded"
    assert machine.committed()[-1][1] == 3
