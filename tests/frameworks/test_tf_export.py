"""A checkpoint of orch as TensorFlow's own: found by latest_checkpoint, restored by tf.train.Checkpoint."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from orch_workers.checkpoint import Catalog, Checkpointer, CheckpointError, open_storage
from orch_workers.checkpoint.content import Content
from orch_workers.checkpoint.exporting import export
from orch_workers.checkpoint.reader import restore
from orch_workers.training.fitting import StartRules, put_what_fits
from orch_workers.training.objects import make_handler
from orch_workers.training.snapshot import Adapters, Stored


class Net(tf.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.layers = [tf.Variable([value, value + 1]), tf.Variable([[value]])]
        self.again = self.layers[0]
        self.scale = tf.Variable(value, dtype=tf.float64)


def content_of(root, **state) -> Content:
    with Checkpointer(str(root / "job-1")) as checkpoints:
        checkpoints.save(5, state)
    catalog = Catalog(open_storage(str(root), {}, {}), "job-1")
    return Content.open(catalog, catalog.committed()[0])


def test_it_is_restored_into_the_same_objects(tmp_path):
    content = content_of(tmp_path, net=Net(3.0), table=np.arange(4.0))
    (done,) = export(content, "tensorflow", tmp_path / "out")
    newest = tf.train.latest_checkpoint(str(tmp_path / "out"))
    assert newest == str(done.path)
    net, table = Net(0.0), tf.Variable(np.zeros(4))
    tf.train.Checkpoint(net=net, table=table).restore(newest).assert_existing_objects_matched()
    assert net.layers[0].numpy().tolist() == [3.0, 4.0]
    assert net.layers[1].numpy().tolist() == [[3.0]]
    assert net.scale.numpy() == 3.0
    assert table.numpy().tolist() == [0.0, 1.0, 2.0, 3.0]
    with pytest.raises(FileExistsError):
        export(content, "tensorflow", tmp_path / "out")


def test_what_is_no_variable_is_noted(tmp_path):
    content = content_of(tmp_path, net=Net(1.0), history=[1, 2])
    (done,) = export(content, "tensorflow", tmp_path / "out")
    assert done.notes == (
        "history.0: a int is no variable, and is left out",
        "history.1: a int is no variable, and is left out",
    )
    only = content_of(tmp_path / "values", history=[1, 2])
    with pytest.raises(CheckpointError, match="no tensors"):
        export(only, "tensorflow", tmp_path / "none")


class Renamed(tf.Module):
    """The same under another name, with a scale of another shape."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = [tf.Variable([0.0, 0.0]), tf.Variable([[0.0]])]
        self.scale = tf.Variable([1.0, 1.0], dtype=tf.float64)
        self.fresh = tf.Variable(5.0)


def test_a_job_begins_with_what_fits_of_another_s_network(tmp_path):
    old = Net(3.0)
    del old.again  # else that is its name: the shortest path that leads there
    content = content_of(tmp_path, net=old)
    _, path = restore(content.catalog, content.point, 0, tmp_path / "slot")
    adapters, net = Adapters(), Renamed()
    stored = Stored(path, adapters.codecs())
    handler = make_handler("net", {"net": net}, adapters.active(), {})
    report = put_what_fits([handler], stored, StartRules(("net",), (("layers*", "blocks*"),)))
    stored.close()
    assert net.blocks[0].numpy().tolist() == [3.0, 4.0]
    assert net.blocks[1].numpy().tolist() == [[3.0]]
    assert (net.scale.numpy().tolist(), net.fresh.numpy()) == ([1.0, 1.0], 5.0)
    assert len(report.loaded) == 2
    assert report.reshaped == ["net.scale ([] there, [2] here)"]
    assert report.missing == ["net.fresh"]
