"""A job's metrics in TensorBoard's files, read back by TensorBoard itself: one curve across restarts."""

from __future__ import annotations

import math

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from orch.model.generation import Generation
from orch_workers.checkpoint.errors import AlreadyExists, StorageUnavailable
from orch_workers.curves import FOLDER, Curves

G11, G12, G21 = Generation(1, 1), Generation(1, 2), Generation(2, 1)


class Folder:
    """Storage on disk; `away`: so many creates fail."""

    def __init__(self, root):
        self.root, self.away = root, 0

    def create_object(self, path, data):
        if self.away:
            self.away -= 1
            raise StorageUnavailable("away")
        target = self.root / path
        if target.exists():
            raise AlreadyExists(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)

    def read(self, tag="loss"):
        found = EventAccumulator(str(self.root / "job-1" / FOLDER)).Reload()
        return [(one.step, one.value) for one in found.Scalars(tag)]


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path / "storage")


def curves(folder, tmp_path):
    state = tmp_path / "state"
    state.mkdir(exist_ok=True)
    return Curves(folder, "job-1", state, clock=lambda: 1.7e9)


def train(drawn, first, last, plus=0.0):
    for step in range(first, last + 1):
        drawn.put(step, {"loss": step + plus})


def test_what_was_done_twice_is_in_there_once(folder, tmp_path):
    drawn = curves(folder, tmp_path)
    drawn.restored(G11, 0)
    train(drawn, 1, 9)
    drawn.committed(6)
    drawn.restored(G12, 6)  # killed at 9, goes on after 6
    train(drawn, 7, 12, plus=0.5)
    drawn.close()
    assert folder.read() == [(step, step + (0.5 if step > 6 else 0)) for step in range(1, 13)]


def test_what_was_written_before_an_older_checkpoint_was_restored_is_purged(folder, tmp_path):
    drawn = curves(folder, tmp_path)
    drawn.restored(G11, 0)
    train(drawn, 1, 9)
    drawn.close()  # it ended at 9, and is resumed at 4
    drawn = curves(folder, tmp_path)
    drawn.restored(G21, 4)
    train(drawn, 5, 7, plus=0.5)
    drawn.committed(7)
    drawn.close()
    assert folder.read() == [(1, 1), (2, 2), (3, 3), (4, 4), (5, 5.5), (6, 6.5), (7, 7.5)]


def test_an_agent_that_dies_leaves_what_was_not_written_to_the_next_one(folder, tmp_path):
    killed = curves(folder, tmp_path)
    killed.restored(G11, 0)
    train(killed, 1, 8)
    with (tmp_path / "state" / "curves.jsonl").open("a") as torn:
        torn.write('[9, 1.7e9, {"lo')
    after = curves(folder, tmp_path)
    after.restored(G21, 7)  # out of the memory of this machine
    train(after, 8, 9, plus=0.5)
    after.close()
    assert folder.read() == [*((step, step) for step in range(1, 8)), (8, 8.5), (9, 9.5)]


def test_storage_that_is_away_only_delays_it(folder, tmp_path):
    drawn = curves(folder, tmp_path)
    drawn.restored(G11, 0)
    folder.away = 1
    train(drawn, 1, 3)
    drawn.committed(3)
    train(drawn, 4, 5)
    drawn.committed(5)
    drawn.close()
    assert folder.read() == [(step, step) for step in range(1, 6)]


def test_storage_that_stays_away_does_not_hold_up_the_end(folder, tmp_path):
    drawn = curves(folder, tmp_path)
    drawn.restored(G11, 0)
    folder.away = 99
    drawn.put(1, {"loss": 1.0})
    drawn.close()
    assert not folder.root.exists()


def test_values_that_are_no_numbers_come_through(folder, tmp_path):
    drawn = curves(folder, tmp_path)
    drawn.restored(G11, 0)
    drawn.put(1, {"loss": "nan", "val_loss": "-inf", "epoch": 3})
    drawn.close()
    assert math.isnan(folder.read()[0][1])
    assert folder.read("val_loss") == [(1, -math.inf)]
    assert folder.read("epoch") == [(1, 3.0)]
