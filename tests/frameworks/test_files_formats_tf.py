"""Files that Keras and TensorFlow write: cut anywhere, none is taken for whole."""

from __future__ import annotations

import shutil
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf

from orch_workers.files.sets import examine_set
from support.cuts import Recorded, examined
from support.file_versions import G1, Scene

CUTS = 3


def make_model() -> keras.Model:
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(8, activation="relu"), keras.layers.Dense(2)]
    )
    model.compile("adam", "mse")
    model.fit(np.ones((4, 4)), np.ones((4, 2)), verbose=0)
    return model


def all_datasets(path: Path) -> dict[str, bytes]:
    found = {}
    with h5py.File(path, "r") as file:
        file.visititems(
            lambda name, one: (
                found.update({name: one[()].tobytes()}) if isinstance(one, h5py.Dataset) else None
            )
        )
    return found


@pytest.mark.parametrize("version", ["earliest", "latest"])
def test_a_writer_that_is_killed_in_the_middle_of_hdf5(version, tmp_path):
    """HDF5 writes where it likes, so a kill leaves more than a beginning."""
    record = Recorded()
    with h5py.File(record, "w", libver=version) as file:
        for number in range(12):
            group = file.create_group(f"layer{number}")
            group.attrs["name"] = f"layer {number}"
            group.create_dataset("w", data=np.full((40, 10), number, np.float32))
            group.create_dataset("packed", data=np.arange(500), chunks=(100,), compression="gzip")
        file.attrs["epoch"] = 3
    states = list(record.states(CUTS))
    whole = tmp_path / "whole.h5"
    whole.write_bytes(states[-1])
    expected = all_datasets(whole)
    assert examined(tmp_path, "x.h5", states[-1]).problem == ""
    taken = 0
    for state in states[:-1]:
        if examined(tmp_path, "x.h5", state).problem:
            continue
        taken += 1
        (tmp_path / "torn.h5").write_bytes(state)
        assert all_datasets(tmp_path / "torn.h5") == expected
    assert taken <= CUTS * 4  # what comes after all the data is there
    for at in range(0, len(states[-1]), 97):
        assert examined(tmp_path, "x.h5", states[-1][:at]).problem


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras and this NumPy
def test_keras_files_cut_anywhere(tmp_path):
    model = make_model()
    for name, save in (("m.weights.h5", model.save_weights), ("m.keras", model.save)):
        save(tmp_path / name)
        content = (tmp_path / name).read_bytes()
        kind = "hdf5" if name.endswith("h5") else "keras"
        assert examined(tmp_path, name, content)[:2] == (kind, "")
        for at in {*range(0, len(content), 101), *range(1, 64), len(content) - 1}:
            assert examined(tmp_path, name, content[:at]).problem, (name, at)


def files_below(folder: Path) -> dict[str, Path]:
    return {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}


def look(folder: Path) -> tuple[str, int | None]:
    paths = files_below(folder)
    found = examine_set(paths, sorted(paths, key=lambda name: paths[name].stat().st_mtime_ns, reverse=True))
    return found.problem, found.step


@pytest.fixture
def saved(tmp_path):
    """A folder with two checkpoints of a CheckpointManager."""
    folder = tmp_path / "tf"
    step = tf.Variable(0, dtype=tf.int64)
    checkpoint = tf.train.Checkpoint(model=make_model(), step=step)
    manager = tf.train.CheckpointManager(checkpoint, str(folder), max_to_keep=2)
    for number in (3, 6):
        step.assign(number)
        manager.save(checkpoint_number=number)
    return folder


def test_tensorflow_files_cut_anywhere(saved, tmp_path):
    assert look(saved) == ("", 6)
    for name, path in files_below(saved).items():
        content = path.read_bytes()
        places = range(0, len(content), max(1, len(content) // 60))
        for at in {*places, len(content) - 1}:
            torn = tmp_path / "torn"
            shutil.copytree(saved, torn)
            (torn / name).write_bytes(content[:at])
            problem, _ = look(torn)
            if name == "checkpoint" and at >= content.index(b"\n"):
                assert problem == ""  # its first line is all that counts
            else:
                assert problem, (name, at)
            shutil.rmtree(torn)


def test_tensorflow_files_that_are_missing(saved):
    (saved / "ckpt-6.index").rename(saved / "gone")
    assert "missing" in look(saved)[0]
    (saved / "gone").rename(saved / "ckpt-6.index")
    data = saved / "ckpt-6.data-00000-of-00001"
    data.rename(saved / "ckpt-6.data-00000-of-00001.tempstate123")
    assert "missing" in look(saved)[0] or "is writing" in look(saved)[0]


def test_the_v1_saver_s_files(tmp_path):
    graph = tf.Graph()
    with graph.as_default():
        variable = tf.compat.v1.get_variable("w", shape=(3,))
        saver = tf.compat.v1.train.Saver(max_to_keep=2)
        with tf.compat.v1.Session() as session:
            session.run(variable.initializer)
            for step in (200, 400, 600):
                saver.save(session, str(tmp_path / "model.ckpt"), global_step=step)
    assert look(tmp_path) == ("", 600)
    paths = files_below(tmp_path)
    assert examine_set(paths, sorted(paths)).unknown == []


def test_a_graph_with_its_collections_comes_back_from_storage(tmp_path):
    """`.meta` is part of the version, and import_meta_graph finds in it what the script had put there."""
    scene, v1 = Scene(tmp_path), tf.compat.v1
    scene.catalog.begin_generation(G1)
    with tf.Graph().as_default(), v1.Session() as session:
        weights = v1.get_variable("w", shape=(3,), initializer=v1.ones_initializer())
        v1.add_to_collection("outputs", tf.identity(weights * 2, name="doubled"))
        session.run(weights.initializer)
        v1.train.Saver().save(session, str(scene.work / "model.ckpt"), global_step=7)
    back = tmp_path / "back"
    back.mkdir()
    for name, content in scene.fetched(scene.commit(1)).items():
        (back / name).write_bytes(content)
    assert {path.name.rpartition(".")[2] for path in back.iterdir()} >= {"meta", "index", "checkpoint"}
    with tf.Graph().as_default(), v1.Session() as session:
        saver = v1.train.import_meta_graph(str(back / "model.ckpt-7.meta"))
        saver.restore(session, str(back / "model.ckpt-7"))
        (outputs,) = v1.get_collection("outputs")
        assert outputs.name == "doubled:0"
        assert session.run(outputs).tolist() == [2.0, 2.0, 2.0]
