"""A writer to S3 that is killed before or after any of its calls, or whose last call lands when its successor is
already at work.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from pathlib import Path

import pytest

from orch_workers.checkpoint import AlreadyExists, open_storage
from support import crash_cycle
from support.crash_cycle import ROOT, Check, Life, facts_at, whole_life

pytestmark = pytest.mark.integration


@pytest.fixture
def memory(monkeypatch):
    crash_cycle.small_limits(monkeypatch)
    folder = Path(tempfile.mkdtemp(prefix="orch-crash-", dir="/dev/shm"))
    (folder / "slots").mkdir()
    yield folder
    shutil.rmtree(folder)


class Calls:
    """Those of a storage that change something, in order."""

    def __init__(self, storage):
        self.made, self.marks = [], []
        self._create, self._delete, self._put = storage._create, storage.delete, storage._client.put_object
        self._storage = storage
        storage._create, storage.delete = self.create, self.delete

    def create(self, path, buffers):
        self._create(path, buffers)
        self.made.append(("create", path, b"".join(buffers)))

    def delete(self, path):
        self._delete(path)
        self.made.append(("delete", path, b""))

    def spoil(self, path, data):
        self._put(Bucket=self._storage._bucket, Key=self._storage._key(path), Body=data)
        self.made.append(("spoil", path, data))

    def mark(self, *what):
        self.marks.append((len(self.made), what))

    def objects(self, count):
        objects = {}
        for kind, path, data in self.made[:count]:
            objects.pop(path, None) if kind == "delete" else objects.update({path: data})
        return objects


def as_tree(objects):
    """The same objects as a folder, which is quicker to look at again and again."""
    tree = {}
    for path, data in objects.items():
        for parent in Path(ROOT, path).parents:
            if str(parent) != ".":
                tree[str(parent)] = None
        tree[f"{ROOT}/{path}"] = data
    return tree


def test_a_kill_before_after_and_during_any_call(memory, seaweed):
    storage = open_storage(seaweed.url("crash"), seaweed.options, seaweed.env)
    calls = Calls(storage)
    whole_life(Life(storage, memory / "slots", calls.mark), calls.spoil)
    on_s3 = {entry.path: storage.read(entry.path) for entry in storage.list()}
    assert on_s3 == calls.objects(None), "a call has been missed"
    check = Check(memory / "check")
    for count in range(len(calls.made) + 1):
        tree, facts = as_tree(calls.objects(count)), facts_at(calls.marks, count)
        check(tree, facts, f"killed after {count} calls")
        if count < len(calls.made) and calls.made[count][0] != "spoil":
            check(tree, facts, f"killed in call {count}, which lands late", late=landing(*calls.made[count]))
    assert check.looked_at > len(calls.made)


def landing(kind, path, data):
    def land(storage):
        if kind == "delete":
            storage.delete(path)
        else:
            with contextlib.suppress(AlreadyExists):
                storage.create(path, data)

    return land
