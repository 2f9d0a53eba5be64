"""Files of a script on S3: shared blobs, parts, damage, removal."""

from __future__ import annotations

import random

import pytest

from orch_policies.retention import Rules
from orch_workers.checkpoint import Catalog
from orch_workers.checkpoint.verifying import verify
from orch_workers.files import taking
from support.file_versions import G1, JOB, Scene

pytestmark = pytest.mark.integration


def test_files_on_s3(either, tmp_path, monkeypatch, seed):
    monkeypatch.setattr(taking, "PART_BYTES", 1 << 20)
    scene = Scene(tmp_path)
    scene.catalog = Catalog(either, JOB)
    scene.catalog.begin_generation(G1)
    large = random.Random(seed).randbytes(5 << 19)
    scene.write(large=large, small=b"one", empty=b"")
    first = scene.commit(1)
    assert scene.fetched(first) == {"large": large, "small": b"one", "empty": b""}
    before = {entry.path for entry in either.list(f"{JOB}/blobs")}
    assert len(before) == 4
    scene.write(small=b"two")
    second = scene.commit(2)
    assert len({entry.path for entry in either.list(f"{JOB}/blobs")} - before) == 1
    assert verify(scene.catalog, second, deep=True).is_good

    damaged = next(path for path in before if path.endswith(f"-{1 << 20}"))
    either.delete(damaged)
    assert not verify(scene.catalog, second).is_good
    scene.write(more=b"three")
    third = scene.commit(3)
    assert scene.fetched(third)["large"] == large
    assert verify(scene.catalog, second, deep=True).is_good

    scene.catalog.retain(Rules(last=1))
    assert [point.step for point in scene.catalog.committed()] == [3]
    assert len(either.list(f"{JOB}/blobs")) == 5
