"""TensorFlow writers, ended by the kernel at a byte of our choice: what they leave is never taken for more than it is.

RLIMIT_FSIZE with SIGXFSZ at its default kills a process in the very write that would make a file longer than that: a
SIGKILL that needs no luck. One process imports TensorFlow; each kill is a fork of it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from orch_workers.files.sets import examine_set

LIMIT_S = 300.0
SIGXFSZ = 25
KINDS = {"managed": {"data", "state"}, "saver": {"data", "index", "meta", "state"}}
"""Files in which a kill is to land."""
WRITER = """
    import json, os, resource, signal, sys

    import tensorflow as tf

    def managed(number):
        value, step = tf.Variable(tf.zeros(5)), tf.Variable(0, dtype=tf.int64)
        manager = tf.train.CheckpointManager(
            tf.train.Checkpoint(step=step, value=value), "models", max_to_keep=3, checkpoint_name="n" * 80
        )
        def save(at):
            step.assign(at)
            value.assign(tf.fill([5], float(at)))
            manager.save(checkpoint_number=at)
        return save

    def saver(number):
        v1 = tf.compat.v1
        v1.disable_v2_behavior()
        value = v1.get_variable("value", (5,), initializer=v1.zeros_initializer())
        feed = v1.placeholder(tf.float32, (5,))
        assign, keeper, session = v1.assign(value, feed), v1.train.Saver(max_to_keep=3), v1.Session()
        os.makedirs("models")
        def save(at):
            session.run(assign, {feed: [float(at)] * 5})
            keeper.save(session, "models/" + "n" * 80, global_step=at)
        return save

    def child(kind, folder, limit):
        os.makedirs(folder)
        os.chdir(folder)
        save = {"managed": managed, "saver": saver}[kind](0)
        save(1)
        save(2)
        if limit is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        save(3)
        os._exit(0)

    for line in sys.stdin:
        pid = os.fork()
        if not pid:
            child(*json.loads(line))
        print(os.waitpid(pid, 0)[1], flush=True)
"""


class Writer:
    """`write` returns the signal that ended a writer, 0 if none did."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with (folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", textwrap.dedent(WRITER)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def write(self, kind: str, name: str, limit: int | None) -> tuple[int, Path]:
        folder = self._folder / name
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([kind, str(folder), limit]) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, (self._folder / "log").read_text()[-3000:]
        return int(line) & 0x7F, folder

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory):
    one = Writer(tmp_path_factory.mktemp("writer"))
    yield one
    one.close()


def files_of(folder: Path) -> dict[str, Path]:
    found = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    return dict(sorted(found.items()))


def value_of(folder: Path) -> float:
    """What a script would load, all of it."""
    latest = tf.train.latest_checkpoint(str(folder / "models"))
    assert latest is not None
    reader = tf.train.load_checkpoint(latest)
    (name,) = [name for name in reader.get_variable_to_shape_map() if name.startswith("value")]
    values = np.unique(reader.get_tensor(name))
    assert len(values) == 1, "in pieces"
    return float(values[0])


def kind_of(name: str) -> str:
    if "/checkpoint" in name:
        return "state"
    return next((kind for kind in ("index", "meta", "data") if f".{kind}" in name), "other")


@pytest.mark.parametrize("kind", ["managed", "saver"])
def test_killed_at_every_range_of_bytes(writer, kind):
    signal, folder = writer.write(kind, f"{kind}-whole", None)
    assert signal == 0
    whole = files_of(folder)
    assert examine_set(whole, list(whole)).problem == ""
    assert value_of(folder) == 3
    sizes = {path.stat().st_size for name, path in whole.items() if "-3." in name}
    states = {path.stat().st_size for name, path in whole.items() if name.endswith("checkpoint")}
    limits = {at for size in sizes for at in (size // 4, size // 2, size - 1)}
    # Times stand in a state file, and not all are of one length: its last bytes are not the same in every run.
    limits |= {at for size in states for at in (size // 4, size // 2, size * 3 // 4)}
    seen, hit = Counter[str](), set[str]()
    for number, limit in enumerate(sorted(limits)):
        signal, folder = writer.write(kind, f"{kind}-{number}", limit)
        assert signal == SIGXFSZ, f"it was to end at byte {limit}"
        left = files_of(folder)
        found = examine_set(left, list(left))
        hit |= {kind_of(name) for name, path in left.items() if path.stat().st_size == limit}
        seen["not taken" if found.problem else "taken"] += 1
        if not found.problem:
            # Whole as far as it goes: the checkpoint before, or already the new one.
            assert value_of(folder) in {2.0, 3.0}, limit
    assert seen["not taken"], f"no kill landed in a write: {seen}"
    assert hit >= KINDS[kind], f"the kills landed in {hit}"
